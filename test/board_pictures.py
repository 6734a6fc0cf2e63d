"""Pictures of a ChArUco board from known places: rendered by the board's homography."""

import cv2
import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from grape_bringup.robot.charuco import BoardSpec, CameraMatrix

SPEC = BoardSpec()
CAMERA = CameraMatrix(width=640, height=480, fx=612.0, fy=610.0, cx=322.0, cy=238.0)
TEXTURE_PX_PER_M = 4000.0
MARGIN_M = 0.02


def pose(translation, rotvec_deg):
    """(4, 4) of a translation, m, and a rotation vector, degrees."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec_deg, degrees=True).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def picture(camera_from_board, noise=0.0, generator=None):
    """(480, 640) uint8: the board on a grey wall."""
    margin = round(MARGIN_M * TEXTURE_PX_PER_M)
    size = [round(n * SPEC.square_m * TEXTURE_PX_PER_M) + 2 * margin for n in (5, 7)]
    texture = SPEC.board().generateImage(size, marginSize=margin)
    texture_to_board = np.array(
        [[1, 0, 0.5 - margin], [0, 1, 0.5 - margin], [0, 0, TEXTURE_PX_PER_M]]
    )
    twice = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])  # rendered larger, then averaged
    plane = camera_from_board[:3, [0, 1, 3]]
    homography = twice @ CAMERA.matrix @ plane @ texture_to_board
    large = cv2.warpPerspective(
        texture, homography, (1280, 960), flags=cv2.INTER_AREA,
        borderMode=cv2.BORDER_CONSTANT, borderValue=120,
    )  # fmt: skip
    seen = cv2.resize(large, (640, 480), interpolation=cv2.INTER_AREA).astype(np.float64)
    if noise:
        seen += generator.normal(0, noise, seen.shape)
    return seen.clip(0, 255).astype(np.uint8)


def views(count, tilt_deg=35.0, seed=0):
    """So many poses camera <- board: the board in the picture, tilted in all directions."""
    generator = np.random.default_rng(seed)
    centre = np.array([5, 7, 0]) * SPEC.square_m / 2
    found = []
    for index in range(count):
        axis = 2 * np.pi * index / count
        tilt = tilt_deg * (0.5 + 0.5 * generator.random())
        turn = pose((0, 0, 0), tilt * np.array([np.cos(axis), np.sin(axis), 0]))
        turn = turn @ pose((0, 0, 0), (0, 0, generator.uniform(-40, 40)))
        place = pose(
            (*generator.uniform(-0.06, 0.06, 2), generator.uniform(0.45, 0.65)), (0, 0, 0)
        )
        found.append(place @ turn @ pose(-centre, (0, 0, 0)))
    return found


def arm_poses(camera_from_board, parent_from_camera, board, setup):
    """Return base <- end effector for each view.

    Args:
        camera_from_board: list of (4, 4).
        parent_from_camera: where the camera is: base or end effector <- camera.
        board: where the board is: end effector or base <- board.
        setup: eye_to_hand, eye_in_hand.

    """
    found = []
    for seen in camera_from_board:
        chain = parent_from_camera @ seen @ np.linalg.inv(board)
        found.append(chain if setup == 'eye_to_hand' else np.linalg.inv(chain))
    return found


def write(folder, seen, arms=(), noise=0.0, generator=None):
    """Write pictures, board, intrinsics and, with arms, the poses, as `capture` does."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f'picture-{i:03d}.png' for i in range(len(seen))]
    for name, view in zip(names, seen, strict=True):
        cv2.imwrite(str(folder / name), picture(view, noise, generator))
    (folder / 'board.yaml').write_text(yaml.safe_dump(SPEC.model_dump()))
    (folder / 'intrinsics.yaml').write_text(yaml.safe_dump(CAMERA.model_dump(mode='json')))
    poses = {
        name: {
            'position_m': arm[:3, 3].tolist(),
            'quaternion_xyzw': Rotation.from_matrix(arm[:3, :3]).as_quat().tolist(),
        }
        for name, arm in zip(names, arms, strict=False)
    }
    if poses:
        everything = {'base_frame': 'base', 'end_effector_frame': 'tcp', 'images': poses}
        (folder / 'poses.yaml').write_text(yaml.safe_dump(everything))
    return names
