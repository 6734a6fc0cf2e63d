"""The guard: the one owner of the arm, as a state machine without ROS.

    DISARMED --arm--> ARMED <--engage/release--> INTERVENED
                      ARMED <--pause/resume--> PAUSED
    any --e-stop--> STOPPED --reset--> DISARMED
    armed --reflex, lost arm, second publisher ...--> FAULT --recover--> DISARMED

Nothing resumes by itself: out of STOPPED and FAULT the way leads through DISARMED, and arming
begins at rest where the arm is. Only ARMED, INTERVENED and PAUSED send targets. One thread calls
it; what others say arrives as values (guard_inputs.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from grape_bringup.robot.arm import ArmMode, ArmState, Pose
from grape_bringup.robot.arm_command import ADVICE
from grape_bringup.robot.gripper import GripperState
from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.guard_follower import Follower, GaveUp
from grape_bringup.robot.guard_inputs import (
    EmergencyStop,
    EpisodeEnd,
    EpisodeStart,
    Finding,
    GuardMode,
    Latest,
    Now,
    Observation,
    Outcome,
    Step,
)
from grape_bringup.robot.guard_motion import MotionError
from grape_bringup.robot.guard_watch import CameraWatch
from grape_bringup.robot.interpolation import InterpolationError
from grape_episode.contract import Contract

LIVE = (GuardMode.ARMED, GuardMode.INTERVENED, GuardMode.PAUSED)
REARM = 'disarmed; arm it when everybody is out of the way'


@dataclass(frozen=True)
class Request:
    """A service call: arm, disarm, stop, reset, recover, pause or resume."""

    kind: str
    reply: Callable[[bool, str], None]


@dataclass(frozen=True)
class _Moment:
    """What a tick begins with, and what comes of it."""

    now: Now
    arm: ArmState | None
    gripper: GripperState | None
    problem: Finding | None  # why arm or gripper take no commands
    latest: Latest
    out: Outcome


class Guard:
    """Modes and what leads from one to another; see guard_follower.py for what is followed."""

    def __init__(
        self,
        config: GuardConfig,
        contract: Contract,
        cameras: tuple[CameraWatch, ...] = (),
        has_gripper: bool = True,
    ) -> None:
        self._config = config
        self._has_gripper = has_gripper
        self._follower = Follower(config, contract, cameras)
        self._requests = {
            'arm': self._arm,
            'disarm': self._disarm,
            'stop': self._stop,
            'reset': self._reset,
            'recover': self._recover,
            'pause': self._pause,
            'resume': self._resume,
        }
        self._is_recovering = False
        self.mode = GuardMode.DISARMED
        self.reason = ''

    @property
    def is_live(self) -> bool:
        """Whether targets are sent."""
        return self.mode in LIVE

    @property
    def counts(self) -> Counter[str]:
        """How often each rule acted."""
        return self._follower.counts

    @property
    def episode_id(self) -> str:
        """The running episode's, '' for none."""
        return self._follower.episode.episode_id if self._follower.episode else ''

    @property
    def source(self) -> str:
        """Whose command was followed last."""
        return self._follower.source

    @property
    def travel_m(self) -> float:
        """Commanded since the episode began."""
        return self._follower.motion.travel_m

    @property
    def gripper(self) -> float:
        """The opening that is in force."""
        return self._follower.gripper

    def fault(self, finding: Finding, out: Outcome) -> None:
        """Give up until a person recovers and arms again."""
        self.counts[finding.rule] += 1
        self._leave(GuardMode.FAULT, finding, out)

    def tick(
        self,
        now: Now,
        arm: ArmState | None,
        gripper: GripperState | None,
        items: Sequence[object],
        latest: Latest,
    ) -> Outcome:
        """Take what came since the last tick, in its order, and move on by one period.

        Args:
            now: both clocks.
            arm: its newest state; None before the first one.
            gripper: its newest state, if there is one.
            items: Step, Observation, EpisodeStart, EpisodeEnd, EmergencyStop and Request.
            latest: what only the newest of counts.

        """
        problem = self._arm_problem(arm, now) or self._gripper_problem(gripper)
        at = _Moment(now, arm, gripper, problem, latest, Outcome())
        self._look(at, items)
        newest = max((n for n, item in enumerate(items) if isinstance(item, Step)), default=-1)
        for number, item in enumerate(items):
            if isinstance(item, Request):
                item.reply(*self._requests[item.kind](at))
            elif isinstance(item, Step) and number < newest:
                text = f'step {items[newest].step} came before it was followed'
                self._follower.refuse(item, Finding('superseded', text))
            else:
                self._try(self._take, at, item)
        if self.is_live:
            self._try(self._move, at)
        if self._is_recovering and at.problem is None:
            self._is_recovering = False
            if self.mode is GuardMode.FAULT:
                self.mode, self.reason = GuardMode.DISARMED, ''
        at.out.executed = self._follower.steps.answers()
        return at.out

    # One tick

    def _look(self, at: _Moment, items: Sequence[object]) -> None:
        """See first to what ends all motion."""
        for item in items:
            if isinstance(item, EmergencyStop):
                self._emergency(item.why, at.out)
        if self.is_live and at.problem is not None:
            self.fault(at.problem, at.out)
        if at.latest.publishers and self.is_live:
            self.fault(Finding('publishers', at.latest.publishers), at.out)
        elif at.latest.publishers and self.reason.startswith('publishers: '):
            self.reason = f'publishers: {at.latest.publishers}'  # names come a moment later

    def _try(self, action: Callable[..., None], at: _Moment, *arguments: object) -> None:
        try:
            action(at, *arguments)
        except GaveUp as error:
            self.fault(error.finding, at.out)
        except (InterpolationError, MotionError) as error:
            self.fault(Finding('motion', str(error)), at.out)

    def _take(self, at: _Moment, item: object) -> None:
        follower = self._follower
        if isinstance(item, EpisodeStart):
            follower.start_episode(item, at.now, at.out)
        elif isinstance(item, EpisodeEnd):
            if item.episode_id == self.episode_id:
                follower.end_episode(item.why, self.is_live, at.out)
        elif isinstance(item, Observation):
            follower.observe(item, at.now, self._not_live())
        elif isinstance(item, Step):
            measured = None if at.arm is None else at.arm.pose
            follower.take_step(item, at.now, measured, self._not_live(), at.out)

    def _not_live(self) -> Finding | None:
        if self.is_live:
            return None
        return Finding(self.mode.name.lower(), self.reason or 'the guard is not armed')

    def _move(self, at: _Moment) -> None:
        follower, out = self._follower, at.out
        is_paused = self.mode is GuardMode.PAUSED
        self.reason = follower.follow(at.now, at.arm.pose, at.latest, is_paused, out)
        if not is_paused:
            self.mode = GuardMode.INTERVENED if follower.is_intervened else GuardMode.ARMED
        target = follower.motion.advance()
        apart_m = float(np.linalg.norm(target.pose.position_m - at.arm.pose.position_m))
        if 0 < self._config.max_tracking_m < apart_m:
            text = (
                f'the arm is {apart_m:.3f} m from where it was sent; is its controller active, '
                'is it blocked?'
            )
            raise GaveUp(Finding('tracking', text))
        out.target = target
        if out.acted is not None:
            follower.steps.acted(out.acted, at.now)
        if follower.hold is None:
            out.gripper = follower.gate.due(at.now.monotonic_s)

    # Modes

    def _leave(self, mode: GuardMode, finding: Finding | None, out: Outcome) -> None:
        if self.is_live:
            self._follower.end(finding or Finding('disarmed', 'the guard was disarmed'), out)
            out.hold = True
        out.target = out.gripper = out.acted = None
        self.mode = mode
        self.reason = '' if finding is None else f'{finding.rule}: {finding.text}'

    def _emergency(self, why: str, out: Outcome) -> None:
        if self.mode is not GuardMode.STOPPED:
            finding = Finding('estop', why)
            self.counts[finding.rule] += 1
            self._leave(GuardMode.STOPPED, finding, out)
        out.hold = True

    def _arm_problem(self, arm: ArmState | None, now: Now) -> Finding | None:
        if arm is None:
            return Finding('arm_lost', 'the arm has not said anything yet: is its driver running?')
        if arm.mode is not ArmMode.READY:
            errors = f' ({"; ".join(arm.errors)})' if arm.errors else ''
            return Finding(f'arm_{arm.mode}', f'the arm is {arm.mode}{errors}: {ADVICE[arm.mode]}')
        age_s = now.monotonic_s - arm.stamp_s
        if age_s > self._config.max_state_age_s:
            text = f"the arm's state is {age_s:.2f} s old: {ADVICE[ArmMode.LOST]}"
            return Finding('arm_lost', text)
        if not _is_pose(arm.pose):
            return Finding('arm_pose', f'the arm says that it is at {arm.pose}: no pose')
        return None

    def _gripper_problem(self, gripper: GripperState | None) -> Finding | None:
        if not self._has_gripper:
            return None
        if gripper is None:
            return Finding('gripper', 'the gripper has not said anything yet: is it connected?')
        return Finding('gripper', f'gripper: {gripper.fault}') if gripper.fault else None

    # Requests: what a person asks of the guard itself

    def _arm(self, at: _Moment) -> tuple[bool, str]:
        if self.is_live:
            return True, 'armed already'
        if refusal := self._refusal_to_arm(at):
            return False, refusal
        self._follower.begin(
            at.now, at.arm.pose, None if at.gripper is None else at.gripper.opening
        )
        self.mode, self.reason = GuardMode.ARMED, ''
        return True, 'armed'

    def _refusal_to_arm(self, at: _Moment) -> str:
        if self.mode is GuardMode.STOPPED:
            return f'the e-stop is latched ({self.reason}): call guard/reset first'
        if self.mode is GuardMode.FAULT:
            return f'a fault is not cleared ({self.reason}): call guard/recover first'
        if at.problem is not None:
            return at.problem.text
        if at.latest.publishers:
            return at.latest.publishers
        if at.latest.teleop is not None and at.latest.teleop.is_engaged:
            return 'a person is engaged at the teleop device: let go, then arm'
        outside_m = self._follower.motion.outside_m(at.arm.pose)
        if outside_m > self._config.workspace_slack_m:
            return (
                f'the arm is {outside_m:.3f} m outside of the workspace box, at '
                f'{np.round(at.arm.pose.position_m, 3).tolist()} m: guide it into the box by '
                'hand, or correct workspace_min_m and workspace_max_m'
            )
        return ''

    def _disarm(self, at: _Moment) -> tuple[bool, str]:
        if self.is_live:
            self._leave(GuardMode.DISARMED, None, at.out)
        return True, f'the guard is {self.mode.name}'

    def _stop(self, at: _Moment) -> tuple[bool, str]:
        self._emergency('guard/stop was called', at.out)
        return True, 'stopped; guard/reset clears it'

    def _reset(self, at: _Moment) -> tuple[bool, str]:
        if self.mode is not GuardMode.STOPPED:
            return False, f'the guard is {self.mode.name}; only an e-stop is reset'
        self.mode, self.reason = GuardMode.DISARMED, ''
        return True, REARM

    def _recover(self, at: _Moment) -> tuple[bool, str]:
        if self.mode is GuardMode.STOPPED:
            return False, f'the e-stop is latched ({self.reason}): call guard/reset first'
        if self.is_live:
            return False, f'the guard is {self.mode.name}; there is nothing to recover'
        if at.problem is None:
            self.mode, self.reason = GuardMode.DISARMED, ''
            return True, REARM
        is_reflex = at.arm is not None and at.arm.mode is ArmMode.REFLEX
        is_gripper = at.problem.rule == 'gripper' and at.gripper is not None
        if not is_reflex and not is_gripper:
            return False, at.problem.text
        at.out.recover, at.out.recover_gripper = is_reflex, is_gripper
        self._is_recovering = True
        return True, 'it recovers; arm it when guard/state is DISARMED'

    def _pause(self, at: _Moment) -> tuple[bool, str]:
        if not self.is_live:
            return False, f'the guard is {self.mode.name}; only an armed one is paused'
        self._follower.release(at.out)
        self.mode = GuardMode.PAUSED
        return True, 'paused'

    def _resume(self, at: _Moment) -> tuple[bool, str]:
        if self.mode is not GuardMode.PAUSED:
            return False, f'the guard is {self.mode.name}, not paused'
        self.mode = GuardMode.ARMED
        return True, 'armed'


def _is_pose(pose: Pose) -> bool:
    numbers = np.concatenate([pose.position_m, pose.quaternion_xyzw])
    is_unit = abs(float(np.linalg.norm(pose.quaternion_xyzw)) - 1.0) < 1e-2
    return bool(np.isfinite(numbers).all() and is_unit)
