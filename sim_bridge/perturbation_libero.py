"""What each perturbation does to LIBERO; the parameters are in perturbation.py.

The environment calls `bddl` and `set_masses` when it builds a simulator; in every episode `adopt`,
`initial_state`, `arrange` on the settled scene and, once that has settled again, `check`; in each
step `before_step` and `see`. An ArrangementError asks for another draw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from sim_bridge import perturbation_layout as layout
from sim_bridge.environment import SimulatorError
from sim_bridge.libero_objects import add_objects, choose_objects, with_objects
from sim_bridge.libero_stage import ARM_JOINTS, LiberoStage
from sim_bridge.libero_tasks import LiberoTask
from sim_bridge.perturbation import (
    ANY,
    DISTRACTOR,
    OBSTACLE,
    Distractors,
    ImageNoise,
    InstructionTemplate,
    LayoutShift,
    Lighting,
    Obstacle,
    Perturbation,
    PerturbationError,
    Reposition,
    RobotPose,
    TableTexture,
)
from sim_bridge.perturbation_layout import Box
from sim_bridge.perturbation_senses import noisy, said_otherwise

# Of the table, in the base frame, m: what the arm reaches and the camera sees.
AREA = Box(np.array([0.33, -0.37]), np.array([0.82, 0.37]))
GAP_M = 0.03  # between things, so that fingers fit in
MAX_TILT_RAD = 0.17
MAX_SLIP_M = 0.02  # from where a thing was put to where it settled
# Files of LIBERO's assets/textures: its own floors and walls.
TEXTURES = (
    'rustic_floor',
    'dark_floor_texture',
    'white_marble_floor',
    'seamless_wood_planks_floor',
    'brown_ceramic_tile',
    'gray_ceramic_tile',
    'dark_blue_wall',
    'dark_green_plaster_wall',
    'yellow_linen_wall_texture',
)

One = TypeVar('One', bound=Perturbation)


class ArrangementError(SimulatorError):
    """Things did not fit or did not stand; another draw may."""


class LiberoPerturbations:
    """The perturbations of one task, in one simulator at a time."""

    def __init__(self, task: LiberoTask) -> None:
        """Choose the added objects; nothing is built yet.

        Raises:
            PerturbationError: the task does not allow one of them.

        """
        self._task = task
        for one in self._of(TableTexture):
            if one.texture not in (ANY, *TEXTURES):
                raise PerturbationError(f"'{one}': expected texture={'|'.join((ANY, *TEXTURES))}.")
        self.added = choose_objects(task.bddl_file.read_text(), task.perturbations)
        self._stage: LiberoStage | None = None
        self._init_state = 0
        self._own: tuple[str, ...] = ()  # the task's own objects
        self._placed: dict[str, np.ndarray] = {}  # name -> middle of its footprint
        self._surface_z_m = 0.0
        self._target_stack: tuple[str, ...] = ()

    def bddl(self) -> str:
        """Return the task's BDDL text with the added objects."""
        return add_objects(self._task.bddl_file.read_text(), self.added)

    @property
    def model_key(self) -> tuple[object, ...]:
        """What the simulator is a function of; tasks that share it share their simulator."""
        masses = tuple(one.mass_kg for one in self._of(Obstacle))
        return (self._task.suite, self._task.index, tuple(self.added), masses)

    def set_masses(self, stage: LiberoStage) -> None:
        """Give the added objects their masses, once."""
        for one in self._of(Obstacle):
            if one.mass_kg:
                for name in self._added(OBSTACLE):
                    stage.set_mass(name, one.mass_kg)

    def adopt(self, stage: LiberoStage) -> None:
        """Work on the simulator that was built for this `model_key`."""
        self._stage = stage
        self._own = tuple(name for name in stage.objects if name not in self.added)

    def initial_state(self, init_state: int) -> np.ndarray:
        """Return the flattened state for this simulator; added objects are not placed yet."""
        stage = self._stage
        joints = [stage.objects[name].joints[-1] for name in self.added]
        return with_objects(self._task.init_states[init_state], stage.scene.model, joints)

    def arrange(self, init_state: int, draw: int) -> None:
        """Change the scene, which has settled in its initial state.

        Args:
            init_state: with the seeds it decides the draws.
            draw: number of the arrangement, from 0; another number gives another one.

        Raises:
            ArrangementError: there is no room.
            PerturbationError: there is nothing that could be moved.

        """
        self._init_state = init_state
        self._placed = {}
        self._surface_z_m = self._stage.surface_z(self._own)
        self._target_stack = self._stack_of(self._stage.scene.target)
        for one in self._task.perturbations:
            rng = one.generator(init_state, draw)
            if isinstance(one, LayoutShift):
                self._shift_layout(one, rng)
            elif isinstance(one, Obstacle):
                self._place_obstacles(one, rng)
            elif isinstance(one, Distractors):
                self._place_distractors(one, rng)
            elif isinstance(one, Reposition):
                self._check_reposition(one)
            elif isinstance(one, RobotPose):
                self._stage.turn_joints(rng.normal(0.0, one.std_rad, ARM_JOINTS))
            elif isinstance(one, Lighting):
                factor, turn = rng.uniform(one.low, one.high), rng.uniform(-1, 1) * one.turn_rad
                self._stage.light(factor, turn)
            elif isinstance(one, TableTexture):
                self._stage.paint_surface(_picture(one, rng))

    def check(self) -> None:
        """Check the scene, settled again: things are where they were put, upright and free.

        Raises:
            ArrangementError: names what is not.

        """
        stage = self._stage
        boxes = stage.boxes()
        for name, place_m in self._placed.items():
            slip_m = np.linalg.norm(boxes[name].centre_m - place_m)
            if slip_m > MAX_SLIP_M:
                raise ArrangementError(f'{name} slid by {slip_m:.3f} m')
            if name in self.added and stage.tilt_rad(name) > MAX_TILT_RAD:
                raise ArrangementError(f'{name} leans or fell')
        if touched := stage.touched_by_robot():
            raise ArrangementError(f'the robot touches {", ".join(sorted(touched))}')

    def before_step(self, step: int) -> None:
        """Do what happens before control step `step`, from 0."""
        for one in self._of(Reposition):
            if step == one.step:
                self._move_target(one)

    def see(self, image: np.ndarray, step: int) -> np.ndarray:
        """Return the picture (H, W, 3) that the policy gets after `step` control steps."""
        for one in self._of(ImageNoise):
            image = noisy(image, one.strength, one.generator(self._init_state, step))
        return image

    def instruction(self) -> str:
        """Return what the policy is told in this episode."""
        text = self._task.instruction
        for one in self._of(InstructionTemplate):
            text = said_otherwise(text, one.index, one.generator(self._init_state))
        return text

    def _shift_layout(self, one: LayoutShift, rng: np.random.Generator) -> None:
        stage = self._stage
        on_table = stage.on_surface(self._own)
        roles = (stage.scene.target, stage.scene.receptacle)
        wanted = roles if one.objects == 'roles' else on_table
        groups = list(dict.fromkeys(filter(None, map(self._stack_of, wanted))))
        if not groups:
            raise PerturbationError(
                f"'{one}': nothing to move: neither target nor receptacle "
                f'({", ".join(filter(None, roles))}) stands on the table as an object of its own; '
                f'those that do: {", ".join(on_table)}.'
            )
        if one.objects == 'together':
            groups = [tuple(name for group in groups for name in group)]
        order = [groups[index] for index in rng.permutation(len(groups))]
        for index, group in enumerate(order):
            leaving = {name for later in order[index:] for name in later}
            self._move(one, group, rng, leaving)

    def _check_reposition(self, one: Reposition) -> None:
        if not self._target_stack:
            raise PerturbationError(
                f"'{one}': the target {self._stage.scene.target} does not stand on the table as "
                'an object of its own; choose another task.'
            )

    def _move_target(self, one: Reposition) -> None:
        """Move the target to where the hand is not."""
        rng = one.generator(self._init_state)
        for _ in range(layout.TRIES):
            offset_m = self._move(one, self._target_stack, rng, set(self._target_stack))
            if not self._stage.touched_by_robot() & set(self._target_stack):
                return
            self._stage.shift(self._target_stack, -offset_m)
        raise SimulatorError(f"'{one}': the hand is wherever the target may be moved to.")

    def _move(
        self,
        one: LayoutShift | Reposition,
        group: tuple[str, ...],
        rng: np.random.Generator,
        leaving: set[str],
    ) -> np.ndarray:
        """Move a group to where nothing is, not counting what is about to leave."""
        boxes = self._boxes()
        offset_m = layout.find_offset(
            [boxes[name] for name in group],
            lambda: layout.any_direction(rng, one.min_m, one.max_m),
            [box for name, box in boxes.items() if name not in leaving],
            AREA,
            GAP_M,
        )
        if offset_m is None:
            raise ArrangementError(
                f"'{one}': no room for {', '.join(group)} {one.min_m:g} .. {one.max_m:g} m from "
                'where it was'
            )
        self._stage.shift(group, offset_m)
        self._placed |= {name: boxes[name].centre_m + offset_m for name in group}
        return offset_m

    def _place_obstacles(self, one: Obstacle, rng: np.random.Generator) -> None:
        start_m, end_m = self._path(is_carried=one.path == 'carry')
        along = (one.along_min, one.along_max)
        for name in self._added(OBSTACLE):
            self._stand(
                one, name, rng, lambda: layout.near_path(rng, start_m, end_m, along, one.aside_m)
            )

    def _place_distractors(self, one: Distractors, rng: np.random.Generator) -> None:
        start_m, end_m = self._path()

        def propose() -> np.ndarray | None:
            place_m = rng.uniform(AREA.low_m, AREA.high_m)
            away_m = layout.distance_to_path(place_m, start_m, end_m)
            return place_m if away_m >= one.away_m else None

        for name in self._added(DISTRACTOR):
            self._stand(one, name, rng, propose)

    def _stand(
        self,
        one: Perturbation,
        name: str,
        rng: np.random.Generator,
        propose: Callable[[], np.ndarray | None],
    ) -> None:
        """Put an added object upright at the first proposed place that is free."""
        yaw_rad = rng.uniform(-np.pi, np.pi)
        place_m = layout.find_offset(
            [self._stage.size(name, yaw_rad)], propose, self._boxes().values(), AREA, GAP_M
        )
        if place_m is None:
            raise ArrangementError(f"'{one}': no room for {name}")
        self._stage.put(name, place_m, self._surface_z_m, yaw_rad)
        self._placed[name] = place_m

    def _stack_of(self, name: str) -> tuple[str, ...]:
        """Return what has to be moved with an object; () where it does not stand on the table."""
        if name not in self._own:
            return ()
        boxes, on_table = self._stage.boxes(), self._stage.on_surface(self._own)
        below = [other for other in on_table if boxes[name].gap_m(boxes[other]) == 0]
        foot = name if name in on_table else next(iter(below), '')
        if not foot:
            return ()
        riders = (n for n in self._own if n not in on_table and boxes[n].gap_m(boxes[foot]) == 0)
        return (foot, *riders)

    def _boxes(self) -> dict[str, Box]:
        """Return what is taken on the table; added objects only once they are placed."""
        boxes = self._stage.boxes()
        return {n: box for n, box in boxes.items() if n not in self.added or n in self._placed}

    def _path(self, is_carried: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the straight way from the target to receptacle or hand, (2,) each."""
        scene, boxes = self._stage.scene, self._stage.boxes()
        start_m = boxes[scene.target].centre_m
        if is_carried and scene.receptacle in boxes and scene.receptacle != scene.target:
            return start_m, boxes[scene.receptacle].centre_m
        return start_m, self._stage.hand_m()

    def _added(self, prefix: str) -> list[str]:
        return [name for name in self.added if name.startswith(prefix)]

    def _of(self, kind: type[One]) -> list[One]:
        return [one for one in self._task.perturbations if isinstance(one, kind)]


def _picture(one: TableTexture, rng: np.random.Generator) -> Path:
    from libero.libero import get_libero_path

    drawn = str(rng.choice(TEXTURES))
    name = drawn if one.texture == ANY else one.texture
    return Path(get_libero_path('assets')) / 'textures' / f'{name}.png'
