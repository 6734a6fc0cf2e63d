"""The recorder on a robot: streams at their own rate, drivers as they are, and bad disks.

The recorder is a real process; its disk and its clock are made slow, broken or wrong from outside
(slow_disk.c), and the full disk is a small tmpfs.
"""

import errno
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import yaml
from recorder_peer import Peer, wait_until
from recorder_streams import (
    IMAGES,
    JOINTS,
    ROBOT,
    Diagnostics,
    Faults,
    Stream,
    offered,
    streamed,
    value,
)

from grape_episode.bag import read_episode, read_info, recover
from grape_episode.outcome import Outcome

QUEUE_MB = 2


@pytest.fixture(scope='module')
def ros(ros_env):
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def faults(tmp_path_factory):
    if shutil.which('gcc') is None:
        pytest.skip('gcc is not installed: apt-get install -y gcc')
    return Faults(tmp_path_factory.mktemp('faults'))


@pytest.fixture(scope='module')
def peer(ros, ros_processes, faults, tmp_path_factory):
    """A recorder of the robot's contract in a process, and its peer."""
    folder = tmp_path_factory.mktemp('robot')
    contract = folder / 'contract.yaml'
    contract.write_text(yaml.safe_dump(ROBOT.to_dict()))
    process = ros_processes(
        'grape_episode.recorder_node',
        {
            'output_dir': folder / 'bags',
            'contract': contract,
            'compression': 'none',
            'drain_timeout_s': 1.0,
            'min_free_mb': 1,
            'queue_mb': QUEUE_MB,
        },
        environment=faults.environment,
    )
    peer = Peer(ros, contract=ROBOT)
    peer.process, peer.bags = process, folder / 'bags'
    peer.diagnostics = Diagnostics(peer.node)
    peer.wait_for_recorder()
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def whole_again(faults):
    yield
    faults.set()


@pytest.fixture
def stream(ros):
    """Return start(topic, ...) -> Stream that the recorder hears."""
    started = []

    def start(topic, **options):
        started.append(Stream(ros, topic, **options))
        started[-1].wait_matched()
        return started[-1]

    yield start
    for each in started:
        each.close()


def execute(peer, name, step, source='policy', delta_m=None, reason=''):
    """Answer a step as the guard does."""
    from grape.msg import PolicyStep

    if not hasattr(peer, 'guard'):
        peer.guard = peer.node.create_publisher(PolicyStep, 'executed_step', 50)
        wait_until(lambda: peer.guard.get_subscription_count() > 0, 30.0)
    message = PolicyStep(episode_id=name, step=step, source=source, verdict_reason=reason)
    message.header.stamp = peer.topics.stamp(step)
    message.delta_translation.x = step / 1000 if delta_m is None else delta_m
    peer.guard.publish(message)


def play(peer, name, steps=3, between=lambda step: None):
    """Play an episode whose steps are executed as they were proposed; return the bag."""
    peer.start(name)
    for step in range(steps):
        peer.step(name, step)
        execute(peer, name, step)
        between(step)
    return peer.stop(name, steps)


def test_executed_steps_tell_whose_command_the_arm_followed(peer):
    peer.start('mixed')
    for step, source in enumerate(('policy', 'teleop', 'hold')):
        peer.step('mixed', step)
        moved_m = {'policy': None, 'teleop': 0.5, 'hold': 0.0}[source]
        execute(peer, 'mixed', step, source, moved_m, reason='' if source == 'policy' else source)
    episode = read_episode(peer.stop('mixed', 3))
    assert episode.info.lost == {}
    assert episode.sources == ('policy', 'teleop', 'hold')
    assert episode.executed.proposed_by == ('expert',) * 3
    assert episode.executed.reasons == ('', 'teleop', 'hold')
    assert episode.executed.translation_m[:, 0] == pytest.approx([0.0, 0.5, 0.0])
    assert episode.as_executed().policy_actions()[1, 0] == pytest.approx(0.5 / 0.05)
    assert episode.translation_m[1, 0] != 0.5


def test_step_that_the_guard_never_answered_is_missing_by_name(peer):
    peer.start('unanswered')
    peer.step('unanswered', 0)
    execute(peer, 'unanswered', 0)
    peer.step('unanswered', 1)
    assert read_info(peer.stop('unanswered', 2)).lost == {'executed_step': 1}


def test_stream_of_a_best_effort_publisher_is_recorded_though_reliable_was_asked(peer, stream):
    driver = stream(JOINTS, reliable=False)
    bag = play(peer, 'adapted', between=lambda _: driver.send(5))
    numbers, _ = streamed(bag, JOINTS)
    assert numbers == list(range(15))
    assert (offered(bag, JOINTS), offered(bag, IMAGES)) == ('best_effort', 'reliable')
    told = peer.diagnostics.wait_for(lambda s: 'best_effort' in value(s, JOINTS))
    assert 'publishers 1' in value(told, JOINTS)


def test_publisher_that_changes_its_quality_is_heard_again_and_nothing_comes_twice(peer, stream):
    first = stream(IMAGES, size=100)
    peer.start('changed')
    first.send(5)
    second = stream(IMAGES, size=100, reliable=False, name='new_driver')
    deadline = time.monotonic() + 20.0
    for number in range(1000):  # until both were heard together for a while
        first.send()
        second.send()
        time.sleep(0.02)
        if number > 150 or time.monotonic() > deadline:
            break
    peer.step('changed', 0)
    execute(peer, 'changed', 0)
    numbers, _ = streamed(peer.stop('changed', 1), IMAGES)
    heard_twice = [n for n in set(numbers) if numbers.count(n) > 2]  # two publishers number alike
    assert not heard_twice
    assert set(range(first.sent)) <= set(numbers)
    assert len(numbers) > first.sent + 50


def test_stream_whose_publisher_vanishes_is_named_and_the_episode_goes_on(peer, ros):
    driver = Stream(ros, JOINTS)
    driver.wait_matched()
    peer.start('vanished')
    driver.send(5)
    driver.close()
    told = peer.diagnostics.wait_for(
        lambda s: value(s, 'episode_id') == 'vanished' and JOINTS in s.message
    )
    assert 'nobody publishes' in told.message and told.level == b'\x01'
    peer.step('vanished', 0)
    execute(peer, 'vanished', 0)
    bag = peer.stop('vanished', 1)
    assert read_info(bag).outcome is Outcome.SUCCESS
    assert streamed(bag, JOINTS)[0] == list(range(5))


def test_two_publishers_of_an_observation_end_the_episode_and_both_are_named(peer, ros):
    from geometry_msgs.msg import PoseStamped

    rival = ros.create_node('rival')
    publisher = rival.create_publisher(PoseStamped, 'ee_pose', 10)
    wait_until(lambda: publisher.get_subscription_count() > 0, 30.0)
    peer.start('rivals')
    peer.step('rivals', 0)
    publisher.publish(PoseStamped())
    said = peer.wait_for('rivals', peer.kinds.ERROR, 30.0)
    assert 'ee_pose came from 2 publishers' in said and '/rival' in said and '/bridge_node' in said
    peer.wait_for('rivals', peer.kinds.RECORDED)
    assert read_info(peer.bags / 'rivals').outcome is Outcome.ERROR
    rival.destroy_node()
    assert read_info(play(peer, 'alone')).outcome is Outcome.SUCCESS


def test_clock_that_jumps_back_does_not_mix_up_the_order_of_messages(peer, stream, faults):
    driver = stream(JOINTS)

    def jump(step):
        driver.send()
        faults.set(clock_s=-3600.0 * (step + 1))
        time.sleep(0.05)

    bag = play(peer, 'jumps', steps=4, between=jump)
    numbers, times = streamed(bag, JOINTS)
    assert numbers == list(range(4)) and times == sorted(times)
    assert (max(times) - min(times)) / 1e9 < 60
    assert read_episode(bag).info.outcome is Outcome.SUCCESS


def test_frozen_recorder_counts_every_message_that_it_missed(peer, stream):
    """A best-effort stream is not sent again: what did not come is counted by its numbers."""
    driver = stream(JOINTS, reliable=False)
    peer.start('frozen')
    driver.send(3)
    time.sleep(0.3)
    os.kill(peer.process.popen.pid, signal.SIGSTOP)
    driver.send(500)
    said = peer.diagnostics.said
    said.clear()
    os.kill(peer.process.popen.pid, signal.SIGCONT)
    # It has taken all that was kept for it: on a busy machine that takes seconds.
    wait_until(lambda: len(said) > 2 and value(said[-1], JOINTS).startswith('0.0 Hz'), 30.0)
    driver.send(1)  # a gap shows when the next one comes
    peer.step('frozen', 0)
    execute(peer, 'frozen', 0)
    bag = peer.stop('frozen', 1)
    numbers, _ = streamed(bag, JOINTS)
    lost = read_info(bag).lost[JOINTS]
    assert lost > 0 and len(numbers) + lost == driver.sent


def test_slow_disk_drops_streams_before_steps_and_counts_what_it_dropped(peer, stream, faults):
    driver = stream(IMAGES, size=200_000)
    peer.start('slow')
    faults.set(seconds_a_megabyte=1000)
    for step in range(20):
        driver.send(3)  # 12 MB in all, of which 1.5 MB may wait
        peer.step('slow', step)
        execute(peer, 'slow', step)
        time.sleep(0.02)
    told = peer.diagnostics.wait_for(
        lambda s: value(s, 'episode_id') == 'slow' and IMAGES in s.message
    )
    assert 'messages lost' in told.message
    faults.set()
    time.sleep(0.5)
    driver.send(1)
    bag = peer.stop('slow', 20)
    info = read_info(bag)
    assert info.outcome is Outcome.SUCCESS and read_episode(bag).info.steps == 20
    assert info.lost[IMAGES] > 0 and len(streamed(bag, IMAGES)[0]) + info.lost[IMAGES] == 61


def test_disk_too_slow_for_the_steps_ends_the_episode_and_has_the_arm_held(peer, stream, faults):
    driver = stream(IMAGES, size=200_000)
    peer.start('stuck')
    faults.set(seconds_a_megabyte=1000)
    driver.send(12)  # streams may fill three quarters of the queue
    for step in range(10**4):  # 3 KB a step
        peer.step('stuck', step)
        time.sleep(0.001)
        if peer.answers('stuck', peer.kinds.ERROR):
            break
    faults.set()
    assert 'the disk is too slow' in peer.wait_for('stuck', peer.kinds.ERROR)
    peer.wait_for('stuck', peer.kinds.RECORDED, 60.0)
    assert read_info(peer.bags / 'stuck').outcome is Outcome.ERROR
    assert read_info(play(peer, 'after_stuck')).outcome is Outcome.SUCCESS


def test_write_error_marks_the_episode_and_the_next_one_is_recorded(peer, faults):
    peer.start('broken')
    peer.step('broken', 0)
    time.sleep(0.5)  # the first chunk is on the disk
    faults.set(errno=errno.EIO)
    peer.step('broken', 1)
    assert 'Input/output error' in peer.wait_for('broken', peer.kinds.ERROR)
    wait_until(lambda: read_info(peer.bags / 'broken').outcome is Outcome.ERROR)
    assert 'Input/output error' in read_info(peer.bags / 'broken').detail
    faults.set()
    assert read_info(play(peer, 'after_broken')).outcome is Outcome.SUCCESS


def test_message_after_stop_is_in_no_bag(peer, stream):
    driver = stream(JOINTS)
    bag = play(peer, 'stopped', between=lambda _: driver.send())
    driver.send(5)
    driver.sent = 100
    time.sleep(0.3)
    after = play(peer, 'next', between=lambda _: driver.send())
    assert streamed(bag, JOINTS)[0] == [0, 1, 2]
    assert streamed(after, JOINTS)[0] == [100, 101, 102]


def test_second_start_of_a_running_episode_never_overwrites_it(peer):
    peer.start('again')
    peer.step('again', 0)
    time.sleep(0.1)
    peer.event(peer.kinds.START, 'again')
    assert 'never overwritten' in peer.wait_for('again', peer.kinds.ERROR)
    peer.wait_for('again', peer.kinds.RECORDED)
    info = read_info(peer.bags / 'again')
    assert (info.outcome, info.steps) == (Outcome.ERROR, 1) and 'again began' in info.detail


@pytest.fixture
def small_disk(peer):
    """Mount a tmpfs of 12 MB over the folder of the bags."""
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', str(peer.bags)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f'no tmpfs can be mounted here: {done.stderr.strip()}')
    yield peer.bags
    subprocess.run(['umount', '-l', peer.bags], check=True)


def test_full_disk_marks_the_episode_and_room_makes_the_next_one_work(peer, stream, small_disk):
    driver = stream(IMAGES, size=200_000)
    peer.start('full')
    peer.step('full', 0)
    for _ in range(400):
        driver.send()
        time.sleep(0.02)
        if peer.answers('full', peer.kinds.ERROR):
            break
    assert 'No space left' in peer.wait_for('full', peer.kinds.ERROR)
    wait_until(lambda: read_info(small_disk / 'full').outcome is Outcome.ERROR)
    assert 'No space left' in read_info(small_disk / 'full').detail  # there was a reserve for it
    peer.event(peer.kinds.START, 'no_room')
    assert 'are free for bags' in peer.wait_for('no_room', peer.kinds.ERROR)
    assert not (small_disk / 'no_room').exists()
    elsewhere = peer.bags.parent / 'saved'
    shutil.move(small_disk / 'full', elsewhere)
    assert read_info(play(peer, 'room')).outcome is Outcome.SUCCESS
    assert recover(elsewhere) > 30
    assert np.array_equal(streamed(elsewhere, IMAGES)[0][:20], range(20))
