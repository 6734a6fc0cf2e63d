"""Objects followed through an episode: optical flow, depth, and the motion most points agree on.

For every object and picture:
1. its feature points are followed from the picture before (keypoint_flow.py) and lifted;
2. the pose that most of them agree on, relative to the first picture, is fitted
   (keypoint_rigid.py) and pushed to where most of the object is seen (keypoint_refinement.py);
   features keep the place on the object that they were born at, so that an object that stands
   still does not drift;
3. the pose is believed if the object's coloured points agree with the picture there
   (keypoint_appearance.py), and more than where it was before. Something that passes in front
   drags features along; an object is believed to have left its place only when the camera looks
   through that place, or sees most of the object elsewhere (keypoint_home.py);
4. an object that has left and is not seen any more is searched by its picture
   (keypoint_redetection.py).

While an object is not seen its position is the last one, marked as not visible, with a covariance
that grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grape_episode.camera import CameraGeometry
from grape_trainer.scoring.keypoint import PERCEIVED, KeypointError, KeypointTrack
from grape_trainer.scoring.keypoint_appearance import Frame, ObjectModel, build_model, prepare
from grape_trainer.scoring.keypoint_flow import follow
from grape_trainer.scoring.keypoint_home import Home, Place
from grape_trainer.scoring.keypoint_lifting import DepthNoise, depth_near, point_covariance
from grape_trainer.scoring.keypoint_redetection import Redetector
from grape_trainer.scoring.keypoint_refinement import pushed
from grape_trainer.scoring.keypoint_rigid import UNMOVED, Pose, fit_poses

FEATURES_APART_PX = 1.5


@dataclass(frozen=True)
class TrackingSettings:
    """Thresholds of the tracker; measured on LIBERO (docs/reference/keypoints.md)."""

    features: int = 30  # an object
    fewest_features: int = 4  # that must agree, or the flow says nothing
    agree_m: float = 0.012  # of the pose that most features agree on
    jump_m: float = 0.08  # in depth from one picture to the next: another surface
    still_m: float = 0.002  # a motion below it is noise
    seen_share: float = 0.2  # of the object's points, or it is not visible
    absent_share: float = 0.4  # looked through: it is not there
    better_share: float = 0.02  # another place has to show this much more of it
    model_sigma_m: float = 0.005  # of the centre within the object, see keypoint_lifting.py
    hidden_sigma_m: float = 0.01  # a picture without the object, random walk
    seed: int = 0  # of the RANSAC samples
    noise: DepthNoise = DepthNoise()

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ('agree_m', 'jump_m', 'still_m', 'model_sigma_m', 'hidden_sigma_m'):
            if not getattr(self, name) > 0:
                raise KeypointError(f'{name} is {getattr(self, name)}; expected more than 0 m.')
        for name in ('seen_share', 'absent_share', 'better_share'):
            if not 0 < getattr(self, name) < 1:
                raise KeypointError(f'{name} is {getattr(self, name)}; expected 0 .. 1.')
        if not self.features >= self.fewest_features >= 1:
            raise KeypointError(
                f'features is {self.features}, fewest_features {self.fewest_features}; expected '
                'features to be as many or more, and 1 or more.'
            )


def track_objects(
    images: np.ndarray,
    depths_m: np.ndarray,
    camera: CameraGeometry,
    masks: dict[str, np.ndarray],
    settings: TrackingSettings | None = None,
) -> KeypointTrack:
    """Follow objects through the pictures of one camera that stands still.

    Args:
        images: (T, H, W, 3) uint8 RGB.
        depths_m: (T, H, W) float32 along the optical axis; 0 or NaN where there is none.
        camera: of these pictures.
        masks: name -> (H, W) bool in the first picture.
        settings: None takes the defaults.

    Returns:
        T states; a keypoint is the middle of its object (keypoint_lifting.extent_centre).

    Raises:
        KeypointError: no pictures or masks, sizes that differ, a mask without depth.

    """
    settings = settings or TrackingSettings()
    _check(images, depths_m, camera, masks)
    before = prepare(images[0], depths_m[0])
    trackers = []
    for index, (name, mask) in enumerate(masks.items()):
        model = build_model(name, mask, before, camera)
        generator = np.random.default_rng([settings.seed, index])
        trackers.append(ObjectTracker(model, before, camera, settings, generator))
    states = [[tracker.state() for tracker in trackers]]
    for image, depth_m in zip(images[1:], depths_m[1:], strict=True):
        now = prepare(image, depth_m)
        points = np.concatenate([tracker.pixels for tracker in trackers])
        guess = np.concatenate([tracker.guess() for tracker in trackers])
        after, good = follow(before.grey, now.grey, points, guess)
        ends = np.cumsum([len(tracker.pixels) for tracker in trackers])[:-1]
        for tracker, pixels, flags in zip(
            trackers, np.split(after, ends), np.split(good, ends), strict=True
        ):
            others = [other.place for other in trackers if other is not tracker]
            tracker.update(now, pixels, flags, others)
        states.append([tracker.state() for tracker in trackers])
        before = now
    positions, visible, covariance = (
        np.array([[state[part] for state in row] for row in states]) for part in range(3)
    )
    return KeypointTrack(tuple(masks), positions, PERCEIVED, visible, covariance)


class ObjectTracker:
    """One object, from picture to picture."""

    def __init__(
        self,
        model: ObjectModel,
        first: Frame,
        camera: CameraGeometry,
        settings: TrackingSettings,
        generator: np.random.Generator,
    ) -> None:
        """Begin where the model was made."""
        self.model = model
        self.pose = UNMOVED
        self.frames_hidden = 0
        self.pixels = np.zeros((0, 2))  # (N, 2) of the features in the last picture
        self._anchors_m = np.zeros((0, 3))  # (N, 3) of the features in the first picture
        self._camera = camera
        self._settings = settings
        self._generator = generator
        self._redetector = Redetector(model, first)
        self._home = Home(model, camera)
        self._before = UNMOVED
        self._agreeing = 0
        self._replenish(first)

    @property
    def visible(self) -> bool:
        """Whether it was seen in the last picture."""
        return self.frames_hidden == 0

    @property
    def place(self) -> Place:
        """Where it is and how large."""
        return Place(self.pose.apply(self.model.centre_m), self.model.radius_m)

    def guess(self) -> np.ndarray:
        """Return where the features may be in the next picture: moving on as before."""
        if not len(self.pixels):
            return self.pixels
        now, _ = self._camera.project(self.pose.apply(self._anchors_m))
        before, _ = self._camera.project(self._before.apply(self._anchors_m))
        return self.pixels + (now - before)

    def update(
        self, frame: Frame, pixels: np.ndarray, good: np.ndarray, others: list[Place]
    ) -> None:
        """Take the next picture, where its flow put the features, and where the others are."""
        self._home.look(frame)
        points = self._lift(frame, pixels, good) if self.visible else self._forget()
        poses = [*self._flow_poses(points), self.pose, self._home.pose]
        pose = self._best(poses, frame, others, True)
        if pose is None and self._home.has_left:
            found = self._redetector.search(frame, self._camera, self.pose, self.frames_hidden)
            pose = self._best([found], frame, others, False)
        if pose is None:
            self.frames_hidden += 1
            self.pose = self._before = self._home.fallback(self.pose)
            return
        if pose is not self.pose and pose is not self._home.pose:
            pose = pushed(self.model, pose, frame, self._camera)
        self._before = self.pose if self.visible else pose
        self.pose, self.frames_hidden = pose, 0
        self._keep(points)
        self._replenish(frame)
        self._home.settle(pose)

    def state(self) -> tuple[np.ndarray, bool, np.ndarray]:
        """Return position (3,) m, visible, covariance (3, 3) m^2."""
        position = self.pose.apply(self.model.centre_m)
        covariance = point_covariance(self._camera, position[None], self._settings.noise)[0]
        covariance /= max(1, self._agreeing)
        drift = self._settings.hidden_sigma_m**2 * self.frames_hidden
        covariance += (self._settings.model_sigma_m**2 + drift) * np.eye(3)
        return position, self.visible, covariance

    def _lift(self, frame: Frame, pixels: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Keep the features that were followed onto their surface; return them lifted (N, 3)."""
        _, expected = self._camera.project(self.pose.apply(self._anchors_m))
        depth = depth_near(frame.depth_m, pixels, expected)
        good = good & (np.abs(depth - expected) < self._settings.jump_m)
        self.pixels, self._anchors_m = pixels[good], self._anchors_m[good]
        return self._camera.back_project(self.pixels, depth[good])

    def _flow_poses(self, points_m: np.ndarray) -> list[Pose]:
        """Return the poses that enough features agree on; a motion below still_m is none."""
        settings = self._settings
        found = []
        for pose, agree in fit_poses(
            self._anchors_m, points_m, self.pose, settings.agree_m, self._generator
        ):
            moved_m = np.linalg.norm(pose.apply(self.model.centre_m) - self.place.centre_m)
            is_same_turn = (pose.rotation == self.pose.rotation).all()
            if agree.sum() >= settings.fewest_features:
                found.append(self.pose if is_same_turn and moved_m < settings.still_m else pose)
        return found

    def _best(
        self,
        poses: list[Pose | None],
        frame: Frame,
        others: list[Place],
        followed: bool,
    ) -> Pose | None:
        """Return the pose that the picture shows most of; the earlier one where it is equal."""
        settings = self._settings
        best, best_share = None, settings.seen_share
        for pose in poses:
            if pose is None:
                continue
            fit = self.model.agreement(pose, frame, self._camera)
            if fit.absent_share >= settings.absent_share or fit.seen_share < best_share:
                continue
            if self._home.allows(pose, fit, others, followed):
                best, best_share = pose, fit.seen_share + settings.better_share
        return best

    def _keep(self, points_m: np.ndarray) -> None:
        """Keep the features that agree with the pose."""
        off = np.linalg.norm(self.pose.apply(self._anchors_m) - points_m, axis=1)
        agree = off < self._settings.agree_m
        self.pixels, self._anchors_m = self.pixels[agree], self._anchors_m[agree]
        self._agreeing = int(agree.sum())

    def _replenish(self, frame: Frame) -> None:
        """Add features at model points that are seen and far from the features there are."""
        missing = self._settings.features - len(self.pixels)
        if missing <= 0:
            return
        fit = self.model.agreement(self.pose, frame, self._camera)
        free = np.flatnonzero(fit.seen)
        if len(self.pixels) and len(free):
            apart = np.linalg.norm(fit.pixels[free, None] - self.pixels[None], axis=2)
            free = free[apart.min(axis=1) > FEATURES_APART_PX]
        chosen = free[np.linspace(0, len(free) - 1, min(missing, len(free))).round().astype(int)]
        self.pixels = np.concatenate([self.pixels, fit.pixels[chosen]])
        self._anchors_m = np.concatenate([self._anchors_m, self.model.points_m[chosen]])

    def _forget(self) -> np.ndarray:
        self.pixels, self._anchors_m = np.zeros((0, 2)), np.zeros((0, 3))
        return np.zeros((0, 3))


def _check(
    images: np.ndarray, depths_m: np.ndarray, camera: CameraGeometry, masks: dict[str, np.ndarray]
) -> None:
    expected = (camera.height, camera.width)
    if not len(images) or not masks:
        raise KeypointError(
            f'{len(images)} pictures and {len(masks)} masks; expected one or more of each.'
        )
    if images.shape[1:] != (*expected, 3) or depths_m.shape != (len(images), *expected):
        raise KeypointError(
            f'pictures are {images.shape} and depths {depths_m.shape}; the camera has '
            f'{expected}. Depth has to be registered to the picture, pixel for pixel.'
        )
