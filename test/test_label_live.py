"""The page beside a running trial: real page node, trial node and recorder, in a real Chromium."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from robot_peer import HOME, wait_until
from robot_trial_bench import IDLE, PAUSED, RESETTING, RUNNING, TO_LABEL, Bench

from grape_episode.label import read_labels

PORT = 18391
CAMERA = f'http://127.0.0.1:{PORT}/live/camera'

pytestmark = pytest.mark.skipif(find_chromium() is None, reason='chromium is not installed')


@pytest.fixture(scope='module')
def bench(ros_processes, tmp_path_factory):
    import rclpy

    rclpy.init()
    bench = Bench(rclpy, tmp_path_factory.mktemp('live'), ros_processes)
    bench.wait_for_graph()
    yield bench
    bench.close()
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def stops(bench):
    """Count what arrives at the guard's stop service."""
    from std_srvs.srv import SetBool, Trigger

    pressed = []

    def stop(request, response):
        pressed.append('stop')
        bench.robot.mode = bench.robot.kinds.STOPPED
        response.success, response.message = True, 'stopped'
        return response

    def arm(request, response):
        bench.robot.mode = bench.robot.kinds.ARMED if request.data else bench.robot.kinds.DISARMED
        response.success, response.message = True, 'armed' if request.data else 'disarmed'
        return response

    bench.robot.node.create_service(Trigger, 'guard/stop', stop)
    bench.robot.node.create_service(SetBool, 'guard/arm', arm)
    return pressed


@pytest.fixture(scope='module')
def page(bench, stops, tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    log = folder / 'page.log'
    # NiceGUI runs in another way where it finds pytest in its environment.
    environment = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'}
    with log.open('wb') as output:
        process = subprocess.Popen(
            [
                sys.executable, '-m', 'grape_bringup.cli', 'label', str(bench.bags), '--live',
                '--port', str(PORT), '--labeller', 'ada', '--contract', str(bench.contract_path),
                '--config', str(bench.config_path),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
    try:
        with Chromium(find_chromium(), folder / 'chrome') as browser:
            wait_until(lambda: answers(process, log), 90.0)
            browser.open(f'http://127.0.0.1:{PORT}/live')
            browser.wait_text('guard armed')
            yield browser
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert 'Traceback' not in log.read_text(), log.read_text()
    assert code in (0, 130)  # Ctrl-C


def answers(process, log):
    assert process.poll() is None, log.read_text()
    try:
        return urllib.request.urlopen(f'http://127.0.0.1:{PORT}/live', timeout=5).status == 200
    except OSError:
        return False


def picture():
    """Return the mean of the picture that the page streams now."""
    import io

    from PIL import Image

    with urllib.request.urlopen(CAMERA, timeout=10) as stream:
        head = b''
        while b'\r\n\r\n' not in head:
            head += stream.read(1)
        size = int(re.search(rb'Content-Length: (\d+)', head)[1])
        return float(np.asarray(Image.open(io.BytesIO(stream.read(size)))).mean())


def test_a_trial_is_run_from_the_page_alone(bench, page):
    page.wait_text('idle')
    assert abs(picture() - 100) < 3
    page.click('#trial-next')
    bench.wait_state(RESETTING)
    page.wait_text('put the red block into the bowl')
    page.key('Enter')
    bench.wait_state(RUNNING)
    page.wait_text('running')
    page.key('p')
    bench.wait_state(PAUSED)
    page.key('r')
    bench.wait_state(RUNNING)
    page.evaluate("document.querySelector('#live-note').focus()")
    page.type('clean')
    page.evaluate('document.activeElement.blur()')
    page.click('#trial-success')
    bench.wait_state(IDLE)
    page.wait_text('is labelled success')
    [bag] = [path for path in bench.bags.iterdir() if path.is_dir()]
    [label] = read_labels(bag)
    assert (label.outcome, label.reason, label.labeller) == ('success', 'clean', 'ada')


def test_ghost_of_the_reference_is_what_the_page_shows_while_the_scene_is_put_back(bench, page):
    bench.robot.colour, bench.robot.at = 200, np.array(HOME) + [0.02, 0, 0]
    bench.press('next')
    bench.wait_state(RESETTING)
    page.wait_text('20 mm from where it began')
    wait_until(lambda: abs(picture() - 150) < 3)
    bench.press('abort')
    bench.wait_state(IDLE)
    wait_until(lambda: abs(picture() - 200) < 3)
    bench.robot.reset()
    bench.robot.colour = 100


def test_refusals_are_shown_as_the_node_says_them(bench, page):
    page.click('#trial-resume')
    page.wait_text('nothing is paused')


def test_stop_key_works_wherever_the_focus_is_and_the_trial_ends_as_an_error(bench, page, stops):
    bench.press('next')
    bench.wait_state(RESETTING)
    bench.press('ready')
    bench.wait_state(RUNNING)
    page.evaluate("document.querySelector('#live-note').focus()")
    before = len(stops)
    page.key('Escape')
    wait_until(lambda: len(stops) == before + 1)
    bench.wait_state(IDLE)
    page.wait_text('guard stopped')
    page.wait_text('the guard is stopped')
    page.evaluate('document.activeElement.blur()')
    page.click('#arm')
    page.wait_text('guard armed')


def test_silent_guard_is_said_in_red_and_a_missing_service_is_named(bench, page):
    bench.robot.silent.add('guard')
    page.wait_text('the guard is silent')
    bench.robot.silent.clear()
    page.wait_text('guard armed')
    page.click('#recover')
    page.wait_text('guard/recover is not offered')
    assert bench.state.state in (IDLE, TO_LABEL)
