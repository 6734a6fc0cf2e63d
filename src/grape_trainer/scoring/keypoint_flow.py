"""Where picture points went from one picture to the next: pyramidal Lucas-Kanade, both ways.

A point is followed forwards and back; one that does not come back to where it began was covered,
left the picture, or slid along an edge (forward-backward error, Kalal et al. 2010).
"""

from __future__ import annotations

import numpy as np

PICTURE_PX = 224  # that the window below is meant for; it grows with the picture
WINDOW_PX = 9
LEVELS = 3
BACK_PX = 1.0


def window_px(width: int) -> int:
    """Return the odd side of the tracking window for a picture's width."""
    return max(WINDOW_PX, round(WINDOW_PX * width / PICTURE_PX) // 2 * 2 + 1)


def follow(
    before: np.ndarray, now: np.ndarray, points: np.ndarray, guess: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow points from one picture to the next.

    Args:
        before: (H, W) uint8 grey.
        now: (H, W) uint8 grey.
        points: (N, 2) u, v in `before`.
        guess: (N, 2) where they may be in `now`.

    Returns:
        (N, 2) float64 u, v in `now`, and (N,) bool: came back within BACK_PX and is inside.

    """
    import cv2

    if len(points) == 0:
        return np.zeros((0, 2)), np.zeros(0, bool)
    side = window_px(before.shape[1])
    options = {
        'winSize': (side, side),
        'maxLevel': LEVELS,
        'criteria': (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
        'flags': cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    start = np.ascontiguousarray(points, np.float32).reshape(-1, 1, 2)
    ahead = np.ascontiguousarray(guess, np.float32).reshape(-1, 1, 2)
    forward, found, _ = cv2.calcOpticalFlowPyrLK(before, now, start, ahead.copy(), **options)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(now, before, forward, start.copy(), **options)
    error = np.linalg.norm(back - start, axis=2).ravel()
    limit = BACK_PX * side / WINDOW_PX
    after = forward.reshape(-1, 2).astype(np.float64)
    height, width = now.shape
    inside = ((after >= 0) & (after <= (width - 1, height - 1))).all(axis=1)
    good = (found.ravel() == 1) & (returned.ravel() == 1) & (error < limit) & inside
    return after, good
