"""`grape calibrate`: a camera's intrinsics and its place on the robot, with a ChArUco board."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.table import Table

from grape_bringup.cli_console import console

if TYPE_CHECKING:
    from grape_bringup.robot.charuco import BoardSpec
    from grape_bringup.robot.hand_eye import HandEyeResult

BOARD_FILE, INTRINSICS_FILE, POSES_FILE = 'board.yaml', 'intrinsics.yaml', 'poses.yaml'
GOOD_RMS_PX = 1.5  # above it, something moved or the board is not flat; an arm's own error gives 1
GOOD_SPREAD_M = 0.005
WORST_RMS_PX = 5.0  # a camera whose place is not known to that much is not written down

Images = Annotated[Path, typer.Option('--images', help='Folder of pictures of the board.')]
BoardFile = Annotated[
    Path | None, typer.Option('--board', help=f'Its YAML; default: {BOARD_FILE} in the pictures.')
]


class Setup(StrEnum):
    """Where the camera is."""

    eye_to_hand = 'eye-to-hand'  # fixed; the board at the end effector
    eye_in_hand = 'eye-in-hand'  # at the wrist; the board on the table


def board(
    out: Annotated[Path, typer.Option('--out', help='Picture to print, .png.')],
    columns: Annotated[int, typer.Option(help='Squares.')] = 5,
    rows: Annotated[int, typer.Option(help='Squares.')] = 7,
    square_mm: Annotated[float, typer.Option(help='Side of a square.')] = 38.0,
    marker_mm: Annotated[float, typer.Option(help='Side of a marker.')] = 28.0,
    dictionary: Annotated[str, typer.Option(help="OpenCV's name of it.")] = 'DICT_5X5_100',
) -> None:
    """Draw a ChArUco board to print, and write its YAML beside it; 5 x 7 of 38 mm fit on A4.

    Print at 100 %, measure a square with a ruler, and correct square_m in the YAML.
    """
    from grape_bringup.robot.charuco import BoardSpec
    from grape_bringup.robot.checked_yaml import check

    values = {
        'columns': columns,
        'rows': rows,
        'square_m': square_mm / 1000,
        'marker_m': marker_mm / 1000,
        'dictionary': dictionary,
    }
    spec = check(values, BoardSpec, 'the board')
    spec.draw(out)
    beside = out.with_name(BOARD_FILE)
    beside.write_text(yaml.safe_dump(spec.model_dump(), sort_keys=False))
    width, height = columns * square_mm, rows * square_mm
    console.print(f'{out}: {width:g} x {height:g} mm at 100 %; {beside}: the same in numbers')


def intrinsics(
    images: Images,
    out: Annotated[Path, typer.Option('--out', help='YAML to write.')],
    board: BoardFile = None,
) -> None:
    """Find a camera's focal lengths, principal point and distortion.

    A RealSense has good ones from the factory (`grape calibrate capture` takes them along).
    """
    from grape_bringup.robot.charuco import calibrate_intrinsics, find_board

    views = find_board(_board(board, images), images)
    result = calibrate_intrinsics(views)
    _show_images(result.by_image_px, views.left_out)
    found = result.camera
    console.print(
        f'fx {found.fx:.2f} +- {result.focal_std_px[0]:.2f}  fy {found.fy:.2f} +- '
        f'{result.focal_std_px[1]:.2f}  cx {found.cx:.2f}  cy {found.cy:.2f} px'
    )
    console.print(
        f'reprojection RMS {found.reprojection_rms_px:.3f} px over {len(views.found)} pictures; '
        f'views tilted by up to {result.tilt_deg:.0f} degrees, corners in '
        f'{result.coverage:.0%} of the picture'
    )
    if result.coverage < 0.5:
        console.print('Less than half of the picture saw the board: distortion is a guess there.')
    _warn_of_rms(found.reprojection_rms_px)
    _write(out, found.model_dump(mode='json'))


def hand_eye(
    images: Images,
    out: Annotated[Path, typer.Option('--out', help='YAML to write; camera_node reads it.')],
    setup: Annotated[Setup, typer.Option('--setup', help='A fixed camera, or one at the wrist.')],
    poses: Annotated[
        Path | None, typer.Option('--poses', help=f'Default: {POSES_FILE} in the pictures.')
    ] = None,
    intrinsics: Annotated[
        Path | None,
        typer.Option('--intrinsics', help=f'Default: {INTRINSICS_FILE} in the pictures.'),
    ] = None,
    board: BoardFile = None,
) -> None:
    """Find where a camera stands: fixed beside the robot, or at its wrist.

    Pictures and poses come from `grape calibrate capture`: at least 8, the end effector tilted by
    20 to 40 degrees in several directions, the board or the camera fixed to it.
    """
    from grape_bringup.robot.charuco import CalibrationError, CameraMatrix, find_board
    from grape_bringup.robot.checked_yaml import load_checked
    from grape_bringup.robot.hand_eye import load_poses, solve

    camera = load_checked(intrinsics or images / INTRINSICS_FILE, CameraMatrix)
    at = load_poses(poses or images / POSES_FILE)
    views = find_board(_board(board, images), images)
    result = solve(views, at.images, camera, setup.name)
    _show_images(result.by_image_px, result.left_out)
    parent = at.base_frame if setup is Setup.eye_to_hand else at.end_effector_frame
    x, y, z = result.parent_from_camera[:3, 3]
    console.print(f'camera in {parent}: x {x:.4f}  y {y:.4f}  z {z:.4f} m')
    console.print(
        f'reprojection RMS {result.rms_px:.3f} px over {len(result.by_image_px)} pictures'
    )
    for method, (metres, degrees) in result.spread.items():
        console.print(f'  {method:<10} lies {1000 * metres:.1f} mm and {degrees:.2f} deg from it')
    _warn_of_rms(result.rms_px)
    if max(metres for metres, _ in result.spread.values()) > GOOD_SPREAD_M:
        console.print(
            f'The methods differ by more than {1000 * GOOD_SPREAD_M:g} mm: take more pictures, '
            'with larger and more varied tilts.'
        )
    if result.rms_px > WORST_RMS_PX:
        raise CalibrationError(
            f'the corners lie {result.rms_px:.1f} px (RMS) from where they were seen; expected at '
            f'most {WORST_RMS_PX:g}. {out} was not written'
        )
    _save_hand_eye(result, setup, parent, out)


def capture(
    out: Annotated[Path, typer.Argument(help='Folder for pictures, poses and intrinsics.')],
    camera: Annotated[
        str, typer.Option('--camera', help='Its topics, before /color/image_raw.')
    ] = '/camera/front',
    pose_topic: Annotated[
        str,
        typer.Option('--pose-topic', help="The end effector's pose (PoseStamped); '': no arm."),
    ] = 'ee_pose',
    end_effector: Annotated[
        str, typer.Option('--end-effector', help='Frame whose pose that is.')
    ] = 'end_effector',
) -> None:
    """Take pictures of the board with the arm's pose: Enter takes one, q ends.

    A picture is refused while the arm moves. Start again to add to what is there.
    """
    from grape_bringup.robot.calibration_capture import run_capture

    run_capture(out, camera.rstrip('/'), pose_topic, end_effector)


def _board(path: Path | None, images: Path) -> BoardSpec:
    from grape_bringup.robot.charuco import BoardSpec
    from grape_bringup.robot.checked_yaml import load_checked

    return load_checked(path or images / BOARD_FILE, BoardSpec)


def _show_images(by_image_px: dict[str, float], left_out: dict[str, str]) -> None:
    table = Table('picture', 'RMS px', 'left out', box=None)
    for name, rms in sorted(by_image_px.items(), key=lambda item: -item[1]):
        table.add_row(name, f'{rms:.3f}', '')
    for name, why in left_out.items():
        table.add_row(name, '', why)
    console.print(table)


def _warn_of_rms(rms_px: float) -> None:
    if rms_px > GOOD_RMS_PX:
        console.print(
            f'A good calibration is below {GOOD_RMS_PX:g} px. Something moved while a picture was '
            'taken, the board is not flat, a square is not as long as its YAML says, or the setup '
            'is the other one. See the worst pictures first.'
        )


def _save_hand_eye(result: HandEyeResult, setup: Setup, parent: str, out: Path) -> None:
    from scipy.spatial.transform import Rotation

    from grape_bringup.robot.hand_eye_file import HandEye

    turn = Rotation.from_matrix(result.parent_from_camera[:3, :3]).as_quat()
    found = HandEye(
        setup=setup.name,
        parent_frame=parent,
        translation_m=tuple(map(float, result.parent_from_camera[:3, 3])),
        quaternion_xyzw=tuple(map(float, turn)),
        reprojection_rms_px=result.rms_px,
        spread_m=max(metres for metres, _ in result.spread.values()),
        spread_deg=max(degrees for _, degrees in result.spread.values()),
        images=len(result.by_image_px),
        calibrated_at=datetime.now(UTC).isoformat(timespec='seconds'),
    )
    _write(out, found.model_dump(mode='json'))


def _write(out: Path, values: dict[str, object]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump(values, sort_keys=False))
    console.print(f'wrote {out}', soft_wrap=True)
