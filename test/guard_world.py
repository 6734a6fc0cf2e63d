"""The guard with a fake arm on a clock of its own: a second of trial takes milliseconds."""

import numpy as np

from grape_bringup.robot.fake_arm import FakeArm, FakeGripper
from grape_bringup.robot.guard import Guard, Request
from grape_bringup.robot.guard_config import load_guard_config
from grape_bringup.robot.guard_inputs import (
    EpisodeStart,
    Latest,
    Now,
    Step,
    Teleop,
    Verdict,
)
from grape_bringup.robot.guard_watch import CameraWatch
from grape_episode.action import EndEffectorDelta
from grape_episode.contract import Contract, load_contract

RATE_HZ = 10.0
EPISODE = 'trial'


def contract(frame='base', rate_hz=RATE_HZ) -> Contract:
    """A robot's contract: LIBERO's topics, 10 Hz, at most 3 cm and 0.1 rad a step."""
    data = load_contract('libero').to_dict()
    data.update(name='test_robot', base_frame='base', control_rate_hz=rate_hz)
    data['action'].update(frame=frame, max_translation_m=0.03, max_rotation_rad=0.1)
    return Contract.from_dict(data)


def delta(x=0.0, y=0.0, z=0.0, turn=(0.0, 0.0, 0.0), gripper=1.0):
    return EndEffectorDelta(np.array([x, y, z]), np.array(turn, float), gripper)


class World:
    """Ticks the guard and does what it says."""

    def __init__(self, frame='base', cameras=(), **changes):
        self.config = load_guard_config().changed(changes)
        self.contract = contract(frame)
        self.time_s = 1000.0
        self.clock_offset_s = 0.0  # of the node's clock
        self.said = []  # (time, what, pose) that the arm was told
        self.opened = []
        self.arm = FakeArm(self._hear, clock=lambda: self.time_s)
        self.gripper = FakeGripper(self.opened.append, clock=lambda: self.time_s)
        self.cameras = tuple(CameraWatch(name) for name in cameras)
        self.guard = Guard(self.config, self.contract, self.cameras)
        self.latest = Latest()
        self.targets = []  # (tick, ArmTarget)
        self.executed = []
        self.interventions = []
        self.ticks = 0
        self.number = 0

    def _hear(self, what, pose):
        self.said.append((self.time_s, what, pose))

    def now(self):
        return Now(self.time_s, round((self.time_s + self.clock_offset_s) * 1e9))

    def tick(self, *items):
        """One period of the loop."""
        self.time_s += 1.0 / self.config.rate_hz
        self.ticks += 1
        out = self.guard.tick(
            self.now(), self.arm.state(), self.gripper.state(), items, self.latest
        )
        if out.target is not None:
            assert self.guard.is_live, f'a target was sent in mode {self.guard.mode.name}'
            self.arm.send(out.target)
            self.targets.append((self.ticks, out.target))
        if out.hold:
            self.arm.hold()
        if out.recover:
            self.arm.recover()
        if out.gripper is not None:
            self.gripper.command(out.gripper)
        self.executed += out.executed
        self.interventions += out.interventions
        return out

    def run(self, seconds):
        for _ in range(round(seconds * self.config.rate_hz)):
            self.tick()

    def ask(self, kind):
        """Call a service; returns (success, message)."""
        answers = []
        self.tick(Request(kind, lambda *answer: answers.append(answer)))
        return answers[0]

    def begin(self, controller='policy'):
        """Arm, and start an episode."""
        done, message = self.ask('arm')
        assert done, message
        self.tick(EpisodeStart(EPISODE, controller))
        self.time_s += 1e-6  # what is observed now is observed after START
        return self

    def step(self, command=None, stamp_s=0.0, wait=True, **fields):
        """A policy's step on an observation of now + stamp_s, and its control period."""
        step = Step(
            stamp_ns=self.now().clock_ns + round(stamp_s * 1e9),
            frame_id=fields.pop('frame_id', self.contract.action.frame),
            episode_id=fields.pop('episode_id', EPISODE),
            step=self.number,
            delta=delta() if command is None else command,
            verdict=fields.pop('verdict', Verdict.OK),
            **fields,
        )
        self.number += 1
        out = self.tick(step)
        if wait:
            self.run(1.0 / RATE_HZ - 1.0 / self.config.rate_hz)
        return out

    def engage(self, linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0), gripper=np.nan, on=True):
        """A person's newest command."""
        teleop = Teleop(self.time_s, on, np.array(linear), np.array(angular), gripper)
        self.latest = Latest(teleop, self.latest.deadman, self.latest.publishers)

    def drive(self, seconds, **command):
        """A person drives: a command at every tick."""
        for _ in range(round(seconds * self.config.rate_hz)):
            self.engage(**command)
            self.tick()

    @property
    def mode(self):
        return self.guard.mode

    @property
    def place(self):
        """Where the arm was sent last."""
        return self.targets[-1][1].pose.position_m

    def is_still(self):
        """Whether the last target was at rest."""
        last = self.targets[-1][1]
        return not last.linear_m_s.any() and not last.angular_rad_s.any()
