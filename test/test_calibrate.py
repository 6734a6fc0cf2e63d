"""`grape calibrate`: pictures of a board from known places give those places back."""

import shutil

import cv2
import numpy as np
import pytest
import yaml
from board_pictures import CAMERA, SPEC, arm_poses, picture, pose, views, write
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from grape_bringup.cli import app
from grape_bringup.robot.charuco import CalibrationError, calibrate_intrinsics, find_board
from grape_bringup.robot.checked_yaml import RobotConfigError
from grape_bringup.robot.hand_eye import ArmPose, load_poses, solve
from grape_bringup.robot.hand_eye_file import load_hand_eye

COUNT = 14
PLACES = {  # parent <- camera, and the board on the other end
    'eye_to_hand': (pose((0.9, 0.1, 0.6), (0, -130, 20)), pose((0.01, -0.02, 0.12), (5, 0, 80))),
    'eye_in_hand': (pose((0.05, 0.0, 0.04), (3, 0, 90)), pose((0.5, -0.1, 0.0), (180, 0, 0))),
}


@pytest.fixture(scope='module')
def sessions(tmp_path_factory):
    """Return setup -> a folder with pictures and poses without any error."""
    folders = {}
    for setup, (place, board) in PLACES.items():
        folders[setup] = tmp_path_factory.mktemp(setup)
        seen = views(COUNT)
        write(folders[setup], seen, arm_poses(seen, place, board, setup))
    return folders


@pytest.fixture
def session(sessions, tmp_path):
    """Return copy(setup) -> a folder of this test's own."""
    return lambda setup: shutil.copytree(sessions[setup], tmp_path / setup)


def run(*arguments):
    result = CliRunner().invoke(app, ['calibrate', *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def solved(folder, setup):
    poses = load_poses(folder / 'poses.yaml').images
    return solve(find_board(SPEC, folder), poses, CAMERA, setup)


def distance(one, other):
    """Millimetres and degrees between two poses."""
    turn = Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).magnitude()
    return 1000 * np.linalg.norm(one[:3, 3] - other[:3, 3]), np.degrees(turn)


@pytest.mark.parametrize('setup', PLACES)
def test_the_place_of_a_camera_is_found_and_camera_node_can_read_it(sessions, tmp_path, setup):
    out = tmp_path / 'hand_eye.yaml'
    said = run(
        'hand-eye', '--images', sessions[setup], '--setup', setup.replace('_', '-'), '--out', out
    )
    found = load_hand_eye(out)
    place = np.eye(4)
    place[:3, :3] = Rotation.from_quat(found.quaternion_xyzw).as_matrix()
    place[:3, 3] = found.translation_m
    off_mm, off_deg = distance(PLACES[setup][0], place)
    assert off_mm < 1.0 and off_deg < 0.1
    assert found.parent_frame == {'eye_to_hand': 'base', 'eye_in_hand': 'tcp'}[setup]
    assert found.images == COUNT and found.reprojection_rms_px < 0.3
    assert found.spread_m < 0.005
    for words in ('reprojection RMS', 'TSAI', 'PARK', 'DANIILIDIS', 'picture-000.png'):
        assert words in said


def test_the_intrinsics_of_a_camera_are_found(sessions, tmp_path):
    out = tmp_path / 'intrinsics.yaml'
    said = run('intrinsics', '--images', sessions['eye_to_hand'], '--out', out)
    found = yaml.safe_load(out.read_text())
    for name, true in (('fx', 612), ('fy', 610), ('cx', 322), ('cy', 238)):
        assert found[name] == pytest.approx(true, abs=3)
    assert found['reprojection_rms_px'] < 0.2 and 'reprojection RMS' in said


def test_one_pose_that_was_moved_raises_the_error_and_stands_out(session):
    folder = session('eye_in_hand')
    poses = dict(load_poses(folder / 'poses.yaml').images)
    clean = solve(find_board(SPEC, folder), poses, CAMERA, 'eye_in_hand')
    bumped = poses['picture-003.png'].model_dump()
    bumped['position_m'] = np.add(bumped['position_m'], (0.02, 0, 0)).tolist()
    poses['picture-003.png'] = ArmPose(**bumped)
    moved = solve(find_board(SPEC, folder), poses, CAMERA, 'eye_in_hand')
    assert moved.rms_px > 5 * clean.rms_px
    assert max(moved.by_image_px, key=moved.by_image_px.get) == 'picture-003.png'


@pytest.mark.parametrize('setup', PLACES)
def test_the_error_of_an_arm_raises_what_is_reported_and_is_not_taken_for_a_turn(session, setup):
    """A fit of the corners alone was off by a degree here."""
    folder, generator = session(setup), np.random.default_rng(1)
    clean = solved(folder, setup)
    shaken = {
        name: arm.matrix() @ pose(generator.normal(0, 0.002, 3), generator.normal(0, 0.2, 3))
        for name, arm in load_poses(folder / 'poses.yaml').images.items()
    }
    shaken = {
        name: ArmPose(
            position_m=tuple(arm[:3, 3]),
            quaternion_xyzw=tuple(Rotation.from_matrix(arm[:3, :3]).as_quat()),
        )
        for name, arm in shaken.items()
    }
    noisy = solve(find_board(SPEC, folder), shaken, CAMERA, setup)
    off_mm, off_deg = distance(PLACES[setup][0], noisy.parent_from_camera)
    assert off_mm < 6 and off_deg < 0.5
    assert noisy.rms_px > 5 * clean.rms_px
    assert max(noisy.spread.values()) > max(clean.spread.values())


def test_a_board_that_is_upside_down_counts_and_pictures_without_one_are_named(session):
    folder = session('eye_to_hand')
    turned = views(1)[0] @ pose((5 * SPEC.square_m, 7 * SPEC.square_m, 0), (0, 0, 180))
    cv2.imwrite(str(folder / 'upside-down.png'), picture(turned))
    cv2.imwrite(str(folder / 'mirrored.png'), picture(views(1)[0])[:, ::-1])
    cv2.imwrite(str(folder / 'empty.png'), np.full((480, 640), 90, np.uint8))
    (folder / 'cut.png').write_bytes((folder / 'empty.png').read_bytes()[:60])
    found = find_board(SPEC, folder)
    assert len(found.found) == COUNT + 1 and 'upside-down.png' in found.found
    assert set(found.left_out) == {'mirrored.png', 'empty.png', 'cut.png'}
    assert '0 markers' in found.left_out['empty.png'] and 'read' in found.left_out['cut.png']
    poses = load_poses(folder / 'poses.yaml').images
    stray = poses | {'gone.png': next(iter(poses.values()))}
    result = solve(found, stray, CAMERA, 'eye_to_hand')
    assert 'no pose' in result.left_out['upside-down.png']
    assert 'no such picture' in result.left_out['gone.png']


def test_too_few_pictures_are_refused_with_their_number(session):
    folder = session('eye_to_hand')
    for name in sorted(folder.glob('*.png'))[5:]:
        name.unlink()
    with pytest.raises(CalibrationError, match='5 pictures .* at least 8'):
        solved(folder, 'eye_to_hand')
    with pytest.raises(CalibrationError, match='5 pictures .* at least 10'):
        calibrate_intrinsics(find_board(SPEC, folder))


def test_an_arm_that_does_not_turn_is_refused(tmp_path):
    place, board = PLACES['eye_to_hand']
    level = views(1, tilt_deg=0)[0]
    slid = [pose((0.02 * i - 0.1, 0, 0.02 * i), (0, 0, 0)) @ level for i in range(10)]
    write(tmp_path, slid, arm_poses(slid, place, board, 'eye_to_hand'))
    with pytest.raises(CalibrationError, match='at least 10 about two axes'):
        solved(tmp_path, 'eye_to_hand')
    with pytest.raises(CalibrationError, match='degrees of tilt'):
        calibrate_intrinsics(find_board(SPEC, tmp_path))


def test_the_other_setup_is_told_and_writes_no_calibration(sessions, tmp_path):
    out = tmp_path / 'hand_eye.yaml'
    with pytest.raises(CalibrationError, match='was not written'):
        run(
            'hand-eye', '--images', sessions['eye_to_hand'], '--setup', 'eye-in-hand', '--out', out
        )
    assert not out.exists()


def test_the_drawn_board_prints_at_its_size_and_is_found(tmp_path):
    from PIL import Image

    run('board', '--out', tmp_path / 'b' / 'board.png', '--square-mm', '30', '--marker-mm', '22')
    with Image.open(tmp_path / 'b' / 'board.png') as drawn:
        inches = [n / d for n, d in zip(drawn.size, drawn.info['dpi'], strict=True)]
    assert inches == pytest.approx([160 / 25.4, 220 / 25.4], abs=0.02)  # with 5 mm of margin
    spec = type(SPEC)(**yaml.safe_load((tmp_path / 'b' / 'board.yaml').read_text()))
    assert len(next(iter(find_board(spec, tmp_path / 'b').found.values())).pixels) == 24


@pytest.mark.parametrize(
    ('values', 'word'),
    [
        (['--square-mm', '20', '--marker-mm', '28'], 'not below square_m'),
        (['--dictionary', 'DICT_9X9'], 'DICT_5X5_100'),
        (['--dictionary', 'DICT_4X4_50', '--columns', '12', '--rows', '12'], 'needs 72 markers'),
    ],
)
def test_a_board_that_cannot_be_made_is_refused(tmp_path, values, word):
    with pytest.raises(RobotConfigError, match=word):
        run('board', '--out', tmp_path / 'board.png', *values)
