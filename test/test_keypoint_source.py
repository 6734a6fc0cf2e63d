"""Keypoints of an episode, from its camera or from the simulator, behind one interface."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from episode_bags import make_bag, make_episode
from keypoint_bags import RGBD, camera_info, camera_pose, flat, upside_down, write_rgbd
from keypoint_scenes import SIZE, Square, moving, render

from grape_episode.bag import BagError, read_episode
from grape_episode.contract import Contract, ContractError, load_contract
from grape_episode.rgbd import read_rgbd
from grape_trainer.scoring.keypoint import KeypointError, KeypointTrack, SceneSource
from grape_trainer.scoring.keypoint_height import HeightContour
from grape_trainer.scoring.keypoint_source import PerceivedSource

STEPS = 10
DEPTH = RGBD.cameras['agentview'].depth


@pytest.fixture(scope='module')
def square():
    return Square(moving((30, 40), (60, 55), STEPS))


@pytest.fixture(scope='module')
def bag(square, tmp_path_factory):
    """A recorded episode of the square, stored upside down."""
    images, depths = render([square], STEPS)
    return write_rgbd(tmp_path_factory.mktemp('bag'), images[:, ::-1], depths[:, ::-1])


def seen(square, step):
    """Where a person clicks on the square: LIBERO's pictures are mirrored when turned upright."""
    u, v = square.corners[step] + square.side / 2
    return {'cup': (SIZE - 1 - u, v)}


def source(square, **options):
    proposer = HeightContour(nearest_m=0.0)
    return PerceivedSource(seen(square, 0), proposer, **options)


def test_pictures_with_depth_are_read_as_a_person_sees_them(bag, square):
    read = read_rgbd(bag)
    images, depths = render([square], STEPS)
    assert np.array_equal(read.images, images[:, :, ::-1])
    assert np.array_equal(read.depths_m, depths[:, :, ::-1])
    pixel, depth = read.camera.project(square.centre_m(3)[None])
    assert abs(depth[0] - square.depth_m) < 1e-6
    middle = square.corners[3] + (square.side - 1) / 2
    np.testing.assert_allclose(pixel[0], (SIZE - 1 - middle[0], middle[1]))


def test_keypoints_from_the_camera_follow_the_truth_over_all_states(bag, square):
    track = source(square).track(read_episode(bag, images=False))
    truth = np.array([square.centre_m(step) for step in range(STEPS)])
    errors = np.linalg.norm(track.position_m('cup')[:STEPS] - truth, axis=1)
    assert errors.max() < 0.005
    assert (track.origin, track.positions_m.shape) == ('perceived', (STEPS + 1, 1, 3))
    assert track.visible[:STEPS].all() and not track.visible[STEPS, 0]
    trace = np.trace(track.covariance_m2[:, 0], axis1=1, axis2=2)
    assert trace[STEPS] > trace[STEPS - 1] > 0


def test_who_is_asked_sees_the_first_picture_and_the_proposals(bag, square):
    asked = []

    def choose(episode, image, proposals):
        asked.append((episode.info.episode_id, image.shape, len(proposals)))
        return seen(square, 0)

    chosen = dataclasses.replace(source(square), choose=choose).track(read_episode(bag))
    assert asked == [('e0', (SIZE, SIZE, 3), 1)]
    clicked = source(square).track(read_episode(bag))
    np.testing.assert_array_equal(chosen.positions_m, clicked.positions_m)


def test_depth_in_millimetres_is_read_in_metres(square, tmp_path):
    """REP 118: a RealSense publishes 16UC1."""
    data = RGBD.to_dict()
    data['cameras']['agentview']['depth']['encoding'] = '16UC1'
    images, depths = render([square], STEPS)
    contract = Contract.from_dict(data)
    read = read_rgbd(write_rgbd(tmp_path, images[:, ::-1], depths[:, ::-1], contract))
    np.testing.assert_allclose(read.depths_m, depths[:, :, ::-1], atol=6e-4)


def without(name):
    return lambda topic, message: [] if topic == name else [message]


def changed(name, **fields):
    def edit(topic, message):
        return [dataclasses.replace(message, **fields)] if topic == name else [message]

    return edit


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (without(DEPTH.camera_info), 'camera_info has no message.*latched'),
        (without(DEPTH.camera_pose), 'camera_pose has no message'),
        (without(DEPTH.topic), 'step 0: no depth with the stamp 0 ns; 0 others'),
        (changed(DEPTH.topic, encoding='16UC1'), 'step 0: 16UC1 of 120 x 120 .* expected 32FC1'),
        (changed(DEPTH.topic, height=60), 'registered to the picture'),
        (changed(DEPTH.camera_info, d=np.full(5, 0.1)), 'distortion.*rectified'),
        (changed(DEPTH.camera_info, width=64), 'says 64 x 120; the pictures have 120 x 120'),
        (changed(DEPTH.camera_info, k=np.zeros(9)), 'focal lengths are 0'),
    ],
)
def test_what_a_bag_with_depth_lacks_is_named(tmp_path, edit, message):
    images, depths = flat(2)
    bag = write_rgbd(tmp_path, images, depths, edit=edit)
    assert len(read_episode(bag).images['agentview']) == 2, 'the episode itself is readable'
    with pytest.raises(BagError, match=message):
        read_rgbd(bag)


def test_a_camera_pose_in_another_frame_is_an_error(tmp_path):
    wrong = camera_pose(upside_down(), 'world')
    edit = changed(DEPTH.camera_pose, header=wrong.header)
    with pytest.raises(BagError, match="in frame 'world'; expected 'robot0_base'"):
        read_rgbd(write_rgbd(tmp_path, *flat(2), edit=edit))


def test_the_last_camera_of_a_bag_counts(tmp_path):
    """A latched message of the episode before may come first."""
    moved = upside_down().base_from_camera.copy()
    moved[:3, 3] = (0.5, 0, 1)
    old = dataclasses.replace(upside_down(), base_from_camera=moved)

    def edit(topic, message):
        return [camera_pose(old), message] if topic == DEPTH.camera_pose else [message]

    read = read_rgbd(write_rgbd(tmp_path, *flat(2), edit=edit))
    np.testing.assert_allclose(read.camera.position_m, (0, 0, 1))
    assert camera_info(old).height == SIZE


def test_an_episode_without_depth_says_which_contract_has_it(tmp_path):
    bag = make_bag(tmp_path)
    with pytest.raises(BagError, match="'libero' has depth of: none.*libero_rgbd"):
        PerceivedSource({'cup': (1, 1)}).track(read_episode(bag))


def test_without_opencv_it_says_what_to_install(bag, square, monkeypatch):
    monkeypatch.setattr('grape_trainer.scoring.keypoint_source.find_spec', lambda _: None)
    with pytest.raises(KeypointError, match='pip install opencv-python'):
        source(square).track(read_episode(bag, images=False))


def test_the_simulators_truth_is_visible_and_exact():
    episode = make_episode()
    track = SceneSource().track(episode)
    assert track.origin == SceneSource.origin == 'privileged'
    assert np.array_equal(track.positions_m, episode.scene.positions_m)
    assert track.visible.shape == (7, 2) and track.visible.all()
    assert track.covariance_m2.shape == (7, 2, 3, 3) and not track.covariance_m2.any()
    with pytest.raises(KeypointError, match='no scene_state.*cameras'):
        SceneSource().track(dataclasses.replace(episode, scene=None))


def test_a_track_of_another_shape_or_origin_is_refused():
    positions = np.zeros((4, 2, 3))
    with pytest.raises(KeypointError, match=r"'guessed'; expected 'privileged' or 'perceived'"):
        KeypointTrack(('a', 'b'), positions, 'guessed')
    with pytest.raises(KeypointError, match=r'visible .* shape \(4,\); .* shape \(4, 2\)'):
        KeypointTrack(('a', 'b'), positions, 'perceived', np.ones(4, bool))
    with pytest.raises(KeypointError, match='covariance_m2'):
        KeypointTrack(('a', 'b'), positions, 'perceived', None, np.full((4, 2, 3, 3), np.nan))


def test_contracts_without_depth_are_written_as_they_always_were():
    """Their hash is in manifests and bags."""
    for name in ('libero', 'libero_tiny', 'libero_openvla'):
        assert 'depth' not in load_contract(name).to_dict()['cameras']['agentview']
    rgbd, plain = load_contract('libero_rgbd'), load_contract('libero')
    assert Contract.from_dict(rgbd.to_dict()) == rgbd
    of_depth = {'depth', 'camera_info', 'camera_pose'}
    assert tuple(t for t in rgbd.topics if t.role not in of_depth) == plain.topics
    assert rgbd.action == plain.action
    steps = {topic.name: 5 for topic in rgbd.topics}
    assert DEPTH.topic not in rgbd.missing_messages(steps, 5)
    assert rgbd.missing_messages(steps | {DEPTH.topic: 4}, 5)[DEPTH.topic] == 1


@pytest.mark.parametrize('role', ['depth', 'camera_info', 'camera_pose'])
def test_a_depth_topic_that_is_not_listed_is_an_error(role):
    data = RGBD.to_dict()
    data['topics'] = [topic for topic in data['topics'] if topic['role'] != role]
    with pytest.raises(ContractError, match=f"agentview': topic .* has no {role} entry"):
        Contract.from_dict(data)


def test_scoring_needs_no_opencv_until_a_picture_is_looked_at():
    code = (
        'import sys; import grape_trainer.scoring.keypoint_source; '
        'sys.exit("cv2" in sys.modules or "torch" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
