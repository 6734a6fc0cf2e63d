"""Keypoints followed through made-up pictures whose truth is known."""

import numpy as np
import pytest
from keypoint_scenes import SIZE, Square, camera, moving, render, still, texture
from scipy.spatial.transform import Rotation

from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_flow import follow, window_px
from grape_trainer.scoring.keypoint_rigid import UNMOVED, fit_poses
from grape_trainer.scoring.keypoint_tracking import TrackingSettings, track_objects

STEPS = 24


def track(squares, followed, steps=STEPS, **options):
    """Track the followed squares; returns the track and (T, K) errors in m."""
    images, depths = render(squares, steps, **options)
    masks = {f'square_{index}': square.mask() for index, square in enumerate(followed)}
    found = track_objects(images, depths, camera(), masks)
    truth = np.array([[square.centre_m(step) for square in followed] for step in range(steps)])
    return found, np.linalg.norm(found.positions_m - truth, axis=2)


def test_a_moving_square_is_followed_and_one_that_stays_does_not_drift():
    mover, stayer = Square(moving((20, 30), (75, 60), STEPS)), Square(still(30, 85, STEPS), seed=2)
    found, errors = track([mover, stayer], [mover, stayer])
    assert found.origin == 'perceived' and found.visible.all()
    assert errors[:, 0].max() < 0.004, 'half a pixel is 3 mm here'
    assert np.ptp(found.positions_m[:, 1], axis=0).max() == 0
    assert errors[:, 1].max() < 1e-6


def test_the_same_pictures_give_the_same_track():
    mover = Square(moving((20, 30), (75, 60), STEPS))
    first, again = (track([mover], [mover])[0] for _ in range(2))
    np.testing.assert_array_equal(first.positions_m, again.positions_m)
    np.testing.assert_array_equal(first.covariance_m2, again.covariance_m2)


def test_what_passes_in_front_hides_a_square_and_does_not_take_it_along():
    """Features of a covered thing stick to what covers it: the published tracker's failure."""
    square = Square(still(50, 50, STEPS))
    passing = Square(moving((-40, 45), (110, 45), STEPS), side=36, depth_m=0.8, seed=3)
    found, errors = track([square, passing], [square])
    covered = (passing.corners[:, 0] > 42) & (passing.corners[:, 0] < 48)
    assert covered.any() and not found.visible[covered, 0].any()
    assert found.visible[[0, 1, 2, -3, -2, -1], 0].all(), 'it is seen before and after'
    assert errors.max() < 0.004
    trace = np.trace(found.covariance_m2[:, 0], axis1=1, axis2=2)
    assert trace[~found.visible[:, 0]].min() > trace[found.visible[:, 0]].max()


def test_a_square_that_was_moved_while_it_was_covered_is_found_again():
    jump = np.concatenate([still(30, 50, 14), still(58, 62, STEPS - 14)])
    square = Square(jump)
    passing = Square(moving((-60, 20), (140, 20), STEPS), side=80, depth_m=0.8, seed=3)
    found, errors = track([square, passing], [square])
    hidden = ~found.visible[:, 0]
    assert hidden.any() and not hidden[-3:].any()
    assert errors[-3:].max() < 0.008


def test_a_twin_that_is_carried_past_does_not_take_the_keypoint_with_it():
    """LIBERO-Spatial has two equal bowls, and one is carried over the other."""
    steps = 30
    stays = Square(still(50, 50, steps), seed=7)
    carried = Square(moving((5, 48), (95, 48), steps), depth_m=0.9, seed=7)
    found, errors = track([stays, carried], [stays, carried], steps)
    assert errors[:, 0].max() < 0.008, 'the twin moves 0.57 m'
    assert np.median(errors[:, 1]) < 0.004


def test_a_change_of_light_is_not_a_change_of_place():
    square = Square(moving((30, 40), (60, 55), STEPS))
    ramp = np.linspace(0, 35, STEPS)
    for brightness in (ramp, -ramp, 20 * np.sin(np.arange(STEPS))):
        found, errors = track([square], [square], brightness=brightness)
        assert found.visible.all() and errors.max() < 0.005


def test_points_that_do_not_come_back_are_dropped():
    before, now = np.roll(texture(5, SIZE, SIZE), 0, axis=1), texture(5, SIZE, SIZE)
    now = np.roll(now, 3, axis=1)  # everything moves 3 px to the right
    now[:, 60:] = texture(6, SIZE, SIZE)[:, 60:]  # and half of it is covered
    left, right = np.array([[20.0, 40], [30, 70], [40, 90]]), np.array([[75.0, 40], [90, 70]])
    points = np.concatenate([left, right])
    grey = [picture.mean(axis=2).astype(np.uint8) for picture in (before, now)]
    after, good = follow(*grey, points, points)
    assert good.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_allclose(after[:3], left + (3, 0), atol=0.2)
    assert follow(*grey, np.zeros((0, 2)), np.zeros((0, 2)))[0].shape == (0, 2)
    assert (window_px(224), window_px(640), window_px(64)) == (9, 27, 9)


def test_the_motion_of_most_points_is_found_among_others():
    generator = np.random.default_rng(0)
    first = generator.uniform(-0.05, 0.05, (30, 3))
    turn = Rotation.from_rotvec([0.1, 0.4, -0.2]).as_matrix()
    now = first @ turn.T + (0.1, 0, 0.2)
    now[:10] += generator.uniform(-0.3, 0.3, (10, 3))
    plain, turned = fit_poses(first, now, UNMOVED, 0.01, generator)
    np.testing.assert_allclose(turned[0].rotation, turn, atol=1e-9)
    np.testing.assert_allclose(turned[0].undo(turned[0].apply(first)), first, atol=1e-12)
    assert turned[1][10:].all() and (plain[0].rotation == np.eye(3)).all()
    shifted = fit_poses(first, first + (0, 0, 0.03), UNMOVED, 0.01, generator)
    np.testing.assert_allclose(shifted[0][0].translation_m, (0, 0, 0.03))
    assert fit_poses(first[:0], now[:0], UNMOVED, 0.01, generator) == []


def test_what_cannot_be_tracked_says_why():
    square = Square(still(30, 40, 2))
    images, depths = render([square], 2)
    masks = {'cup': square.mask()}
    with pytest.raises(KeypointError, match='2 pictures and 0 masks'):
        track_objects(images, depths, camera(), {})
    with pytest.raises(KeypointError, match='registered to the picture'):
        track_objects(images, depths[:, :50], camera(), masks)
    with pytest.raises(KeypointError, match='agree_m is 0; expected more than 0 m'):
        TrackingSettings(agree_m=0)
    with pytest.raises(KeypointError, match=r'seen_share is 2; expected 0 \.\. 1'):
        TrackingSettings(seen_share=2)
    with pytest.raises(KeypointError, match='features is 3, fewest_features 4'):
        TrackingSettings(features=3)
