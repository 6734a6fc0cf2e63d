"""Perceived keypoints against the simulator's truth, and depth through the whole graph."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from graph_run import grape
from keypoint_bags import without_scene
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_episode.bag import find_bags, read_episode
from grape_episode.contract import load_contract
from grape_trainer.scoring.keypoint import track_from_scene
from grape_trainer.scoring.keypoint_clicks import masks_of_clicks
from grape_trainer.scoring.keypoint_height import HeightContour
from grape_trainer.scoring.keypoint_names import names_key
from grape_trainer.scoring.keypoint_source import PerceivedSource
from grape_trainer.scoring.keypoint_tracking import track_objects
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.scorer import score_bags

pytestmark = pytest.mark.sim

sys.path.insert(0, str(Path(__file__).parents[1] / 'bench'))

TASK = 'libero_object/0'
INIT_STATE = 40  # neither tuned on nor in the benchmark
GOAL_M = 0.02


@pytest.fixture(scope='module')
def episode():
    """One episode of the scripted expert with depth and truth."""
    from keypoint_episodes import episodes

    return next(episodes(TASK, [INIT_STATE], 224, 'fast'))


def test_depth_lifts_every_object_to_where_the_simulator_has_it(episode):
    """The surface lies between the camera and the object's middle, and in its direction."""
    pixels, depth = episode.camera.project(episode.positions_m[0])
    for index, name in enumerate(episode.names):
        rows, columns = np.nonzero(episode.first_owner == index)
        assert len(rows), name
        surface = episode.depths_m[0, rows, columns]
        assert -0.1 < np.median(surface) - depth[index] < 0.02, name
        middle = np.array([columns.mean(), rows.mean()])
        assert np.linalg.norm(middle - pixels[index]) < 8, name


def test_the_carried_target_is_followed_within_two_centimetres(episode):
    first = (episode.images[0], episode.depths_m[0], episode.camera)
    masks = masks_of_clicks(episode.clicks(), HeightContour().propose(*first), *first)
    track = track_objects(episode.images, episode.depths_m, episode.camera, masks)
    assert episode.success and set(track.names) == set(episode.names)
    target = episode.names.index(episode.target)
    moved = np.linalg.norm(np.ptp(episode.positions_m[:, target], axis=0))
    assert moved > 0.3, 'the target is to be carried'
    for index, name in enumerate(episode.names):
        errors = np.linalg.norm(track.position_m(name) - episode.positions_m[:, index], axis=1)
        in_sight = episode.visible()[:, index]
        assert np.median(errors[in_sight]) < GOAL_M, name
        assert track.visible[in_sight, track.names.index(name)].mean() > 0.9, name


def test_depth_goes_through_bridge_and_recorder_into_keypoints(tmp_path):
    """An episode recorded over ROS under libero_rgbd, and the keypoints read out of its bag."""
    pytest.importorskip('rclpy', reason='rclpy is not installed: run make setup')
    contract = tmp_path / 'contract.yaml'
    rgbd = load_contract('libero_rgbd').with_camera_size(128)
    contract.write_text(yaml.safe_dump(rgbd.to_dict()))
    done = grape(
        'demos', '--task', TASK, '--init-states', str(INIT_STATE), '--out', tmp_path / 'bags',
        '--contract', contract, '--rendering', 'fast', '--max-steps', '25', '--workers', '1',
    )  # fmt: skip
    bags = find_bags([tmp_path / 'bags'])
    assert bags, done.stdout + done.stderr
    recorded = read_episode(bags[0], images=False)
    assert recorded.info.steps == 25 and not recorded.info.lost
    truth = track_from_scene(recorded.scene)
    seen = {}

    def choose(_, image, proposals):
        """Take for each object the proposal that is closest to its true place."""
        from grape_episode.rgbd import rgbd_of

        camera = rgbd_of(recorded).camera
        pixels, _ = camera.project(truth.positions_m[0])
        for name, pixel in zip(truth.names, pixels, strict=True):
            away = [np.linalg.norm(proposal.centre - pixel) for proposal in proposals]
            if name != 'gripper' and min(away) < 6:
                seen[name] = proposals[int(np.argmin(away))].centre.tolist()
        return seen

    track = PerceivedSource(choose).track(recorded)
    assert {'alphabet_soup_1', 'basket_1'} <= set(seen)
    assert track.positions_m.shape == (26, len(seen), 3)
    errors = np.linalg.norm(track.positions_m - truth.select(track.names), axis=2)
    assert np.median(errors) < GOAL_M
    picture = tmp_path / 'first.png'
    shown = CliRunner().invoke(app, ['keypoints', 'show', str(bags[0]), '--out', str(picture)])
    assert shown.exit_code == 0 and picture.is_file() and f'{len(seen)}: [' in shown.output
    _scores_without_scene_state(tmp_path, bags[0], seen)


def _scores_without_scene_state(tmp_path, bag, clicks):
    """A bag as a real robot records it is scored from its camera, nearly as with the truth."""
    (tmp_path / 'clicks').mkdir()
    file = tmp_path / 'clicks' / f'{names_key(TASK, INIT_STATE)}.json'
    file.write_text(json.dumps(clicks))
    bare = without_scene(bag, tmp_path / 'bare')
    safety = load_objective('safety')
    looking = safety.with_keypoints(source='clicks', clicks=file.parent)
    (truth,) = score_bags([bag], safety, tmp_path / 'truth.csv').rows
    seen, same = score_bags([bare, bag], looking, tmp_path / 'seen.csv').rows
    assert (truth.keypoints, truth.left_out, truth.collisions) == ('privileged', '', 0)
    contacts = [f'stage{n}_collision_constraint{k}' for n, k in ((1, 3), (2, 2), (3, 3))]
    assert (seen.keypoints, seen.left_out.split()) == ('perceived', contacts)
    assert (seen.collisions, seen.status) == (None, 'no_log_probs')
    # 25 steps reach no other stage than the first; the others cost their worst, without contacts.
    assert seen.stage_costs['grasp'] == pytest.approx(truth.stage_costs['grasp'], abs=0.05)
    for name in ('transport', 'place'):
        assert seen.stage_costs[name] == truth.stage_costs[name] - 1.0
    assert same.stage_costs == seen.stage_costs, 'nothing of the truth is looked at'
    (refused,) = score_bags([bare], safety, tmp_path / 'refused.csv').rows
    assert refused.status == 'unscorable' and 'has no scene_state' in refused.detail
