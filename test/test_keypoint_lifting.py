"""From pixels to metres: numbers worked out by hand."""

import numpy as np
import pytest
from keypoint_scenes import FOCAL, SIZE, TABLE_M, Square, camera, render, still

from grape_episode.camera import CameraError, CameraGeometry
from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_lifting import (
    DepthNoise,
    depth_near,
    extent_centre,
    object_points,
    point_covariance,
    point_map,
    surface_labels,
)

MIDDLE = (SIZE - 1) / 2  # 59.5


def test_a_pixel_lifts_to_where_it_is_by_hand():
    """30 px right of and 15 px below the middle, f = 150 px, 0.5 m away: 0.1 and 0.05 m."""
    point = camera().back_project(np.array([[MIDDLE + 30, MIDDLE + 15]]), np.array([0.5]))
    np.testing.assert_allclose(point, [[0.1, -0.05, 0.5]], atol=1e-12)
    pixels, depth = camera().project(point)
    np.testing.assert_allclose(pixels, [[MIDDLE + 30, MIDDLE + 15]])
    np.testing.assert_allclose(depth, [0.5])


def test_a_picture_that_is_stored_upside_down_lifts_to_the_same_points():
    """LIBERO's pictures are mirrored: no turn of the camera gives them, a negative fy does."""
    upright = camera()
    flipped = upright.intrinsics.copy()
    flipped[1] = (0, -FOCAL, SIZE - 1 - MIDDLE)
    stored = CameraGeometry(flipped, upright.base_from_camera, SIZE, SIZE)
    depth_m = np.linspace(0.5, 1.0, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    straight = point_map(upright, depth_m)
    np.testing.assert_allclose(point_map(stored, depth_m[::-1])[::-1], straight, atol=1e-6)
    turned = point_map(stored.turned(180), np.rot90(depth_m[::-1], 2))
    np.testing.assert_allclose(np.rot90(turned, 2)[::-1], straight, atol=1e-6)
    assert stored.turned(0) is stored


def test_a_camera_that_cannot_be_is_refused_with_what_is_wrong():
    good = camera()
    with pytest.raises(CameraError, match='focal lengths are 0'):
        CameraGeometry(np.zeros((3, 3)), good.base_from_camera, SIZE, SIZE)
    with pytest.raises(CameraError, match='determinant is -1'):
        CameraGeometry(good.intrinsics, np.diag([1.0, 1, -1, 1]), SIZE, SIZE)
    with pytest.raises(CameraError, match=r'shapes \(3, 3\) and \(3, 3\)'):
        CameraGeometry(good.intrinsics, np.eye(3), SIZE, SIZE)
    with pytest.raises(CameraError, match='turned by 90'):
        good.turned(90)


def test_background_in_a_mask_is_not_the_object():
    """A mask that is 3 px too wide all round keeps the square's pixels only."""
    square = Square(still(50, 40, 1))
    _, depths = render([square], 1)
    wide = np.zeros((SIZE, SIZE), bool)
    wide[37:67, 47:77] = True
    points, pixels = object_points(camera(), depths[0], wide, 'square')
    assert len(points) == square.side**2
    np.testing.assert_allclose(points[:, 2], 1 - square.depth_m, atol=1e-6)
    assert pixels.min(0).tolist() == [50, 40] and pixels.max(0).tolist() == [73, 63]


def test_a_mask_without_depth_or_of_another_size_says_so():
    _, depths = render([Square(still(50, 40, 1))], 1)
    mask = Square(still(50, 40, 1)).mask()
    depths[0][mask] = 0
    with pytest.raises(KeypointError, match="'cup' has 0 pixels with depth in its mask of 576"):
        object_points(camera(), depths[0], mask, 'cup')
    with pytest.raises(KeypointError, match=r"mask of 'cup' has the shape \(4, 4\)"):
        object_points(camera(), depths[0], np.ones((4, 4), bool), 'cup')


def test_the_middle_of_a_box_is_found_from_the_two_sides_that_are_seen():
    """Its top and front are points, its middle is not on any of them."""
    along = np.linspace(-1, 1, 9)
    a, b = (grid.ravel() for grid in np.meshgrid(along, along))
    half, centre = np.array([0.03, 0.02, 0.05]), np.array([0.5, -0.1, 0.05])
    top = centre + half * np.stack([a, b, np.ones_like(a)], axis=1)
    front = centre + half * np.stack([np.ones_like(a), a, b], axis=1)
    np.testing.assert_allclose(extent_centre(np.concatenate([top, front])), centre)
    assert np.linalg.norm(np.concatenate([top, front]).mean(0) - centre) > 0.02


def test_surfaces_are_cut_where_depth_jumps_and_numbered_by_size():
    depths = render([Square(still(20, 20, 1)), Square(still(44, 20, 1), depth_m=0.8)], 1)[1][0]
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:44, 25:68] = True
    depths[30, 50] = np.nan
    labels = surface_labels(point_map(camera(), depths), mask, 0.02)
    assert labels[30, 60] == 0 and labels[30, 30] == 1 and labels[30, 50] == -1
    assert labels[0, 0] == -1 and labels.max() == 1
    assert (surface_labels(point_map(camera(), depths), mask & False, 0.02) == -1).all()


def test_at_an_edge_the_depth_of_the_expected_surface_is_taken():
    depths = render([Square(still(50, 40, 1))], 1)[1][0]
    edge = np.array([[50.0, 50.0]])
    np.testing.assert_allclose(depth_near(depths, edge, np.array([0.96])), [0.95], atol=1e-6)
    np.testing.assert_allclose(depth_near(depths, edge, np.array([TABLE_M])), [1.0])
    nowhere = np.array([[-5.0, 3.0], [np.nan, 3.0], [500.0, 3.0]])
    assert np.isnan(depth_near(depths, nowhere, np.ones(3))).all()
    assert np.isnan(depth_near(np.zeros((SIZE, SIZE)), edge, np.ones(1))).all()


def test_the_covariance_is_depths_noise_along_and_a_pixel_across_by_hand():
    """On the axis at 0.5 m: across 0.5 * 0.5 / 150 m, along 0.001 + 0.004 * 0.25 m."""
    found = point_covariance(camera(), np.array([[0.0, 0.0, 0.5]]), DepthNoise())[0]
    across, along = (0.25 / 150) ** 2, 0.002**2
    np.testing.assert_allclose(found, np.diag([across, across, along]), atol=1e-12)
    aside = point_covariance(camera(), np.array([[0.1, 0.0, 0.5]]), DepthNoise())[0]
    np.testing.assert_allclose(aside[0, 0], across + along * 0.2**2)
    np.testing.assert_allclose(aside, aside.T)
    assert aside[0, 2] < 0, 'a point that is farther than seen is farther out: down and to +x'
