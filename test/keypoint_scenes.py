"""Made-up pictures with depth: textured squares above a table, seen from straight above."""

from dataclasses import dataclass, field

import numpy as np

from grape_episode.camera import CameraGeometry

SIZE = 120  # px, square pictures
FOCAL = 150.0  # px
TABLE_M = 1.0  # from the camera, which is 1 m above the origin of the base frame
LOOKS_DOWN = np.diag([1.0, -1.0, -1.0])


def camera():
    """A camera at (0, 0, 1) that looks down; the picture's right is x, its top is y."""
    middle = (SIZE - 1) / 2
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = LOOKS_DOWN, (0, 0, 1)
    intrinsics = np.array([[FOCAL, 0, middle], [0, FOCAL, middle], [0, 0, 1.0]])
    return CameraGeometry(intrinsics, pose, SIZE, SIZE)


def texture(seed, height, width, low=40, high=215):
    """Blobs of colour of about 4 px, (height, width, 3) uint8."""
    import cv2

    generator = np.random.default_rng(seed)
    coarse = generator.integers(low, high, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Square:
    """A textured square that faces the camera; its corner may move from picture to picture."""

    corners: np.ndarray  # (T, 2) int u, v of the top left pixel
    side: int = 24
    depth_m: float = 0.95
    seed: int = 1
    texture: np.ndarray = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, 'texture', texture(self.seed, self.side, self.side))

    def centre_m(self, step):
        """Where its middle is in the base frame."""
        middle = self.corners[step] + (self.side - 1) / 2
        return camera().back_project(middle[None].astype(float), np.array([self.depth_m]))[0]

    def mask(self, step=0):
        """Which pixels it has when nothing covers it."""
        mask = np.zeros((SIZE, SIZE), bool)
        u, v = self.corners[step]
        mask[max(v, 0) : v + self.side, max(u, 0) : u + self.side] = True
        return mask


def still(u, v, steps):
    """Corners of a square that stays."""
    return np.tile((u, v), (steps, 1))


def moving(start, end, steps):
    """Corners of a square that moves straight, in whole pixels."""
    return np.rint(np.linspace(start, end, steps)).astype(int)


def render(squares, steps, brightness=None):
    """Draw squares, the farthest first; returns images (T, H, W, 3) and depths (T, H, W)."""
    table = texture(99, SIZE, SIZE, 120, 150)
    images = np.tile(table, (steps, 1, 1, 1))
    depths = np.full((steps, SIZE, SIZE), TABLE_M, np.float32)
    for square in sorted(squares, key=lambda one: -one.depth_m):
        for step in range(steps):
            u, v = square.corners[step]
            low, high = np.maximum((u, v), 0), np.minimum((u + square.side, v + square.side), SIZE)
            if (high <= low).any():
                continue
            cut = square.texture[low[1] - v : high[1] - v, low[0] - u : high[0] - u]
            images[step, low[1] : high[1], low[0] : high[0]] = cut
            depths[step, low[1] : high[1], low[0] : high[0]] = square.depth_m
    if brightness is not None:
        change = np.asarray(brightness, float)[:, None, None, None]
        images = np.clip(images + change, 0, 255).astype(np.uint8)
    return images, depths
