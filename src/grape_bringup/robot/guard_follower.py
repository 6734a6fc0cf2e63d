"""Whom the armed guard follows: the policy, a person, or nobody.

    policy step  --refused?--> answered 'hold'
                 --person engaged?--> answered 'teleop', with what the person did
                 --else--> limited, composed on the goal, answered with what came of it

A hold (pause, deadman switch, camera) brakes, and ends by itself when its cause does; then only
steps that were chosen from an observation after it count. What a hold cannot mend raises GaveUp.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.guard_config import GuardConfig
from grape_bringup.robot.guard_gripper import GripperGate
from grape_bringup.robot.guard_inputs import (
    HOLD,
    POLICY,
    TELEOP,
    Deadman,
    EpisodeStart,
    Finding,
    Latest,
    Now,
    Observation,
    Outcome,
    Step,
    Teleop,
    Verdict,
)
from grape_bringup.robot.guard_motion import Motion
from grape_bringup.robot.guard_step_gate import StepGate
from grape_bringup.robot.guard_steps import ControlSteps
from grape_bringup.robot.guard_watch import CameraWatch
from grape_episode.action import EndEffectorDelta
from grape_episode.contract import Contract

OPEN = 1.0  # of a gripper that nobody knows anything of


class GaveUp(RuntimeError):  # noqa: N818 - a state of affairs, not a mistake
    """The guard can't go on without a person; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class Follower:
    """The running episode, who moves the arm in it, and what holds it up."""

    def __init__(
        self, config: GuardConfig, contract: Contract, cameras: tuple[CameraWatch, ...]
    ) -> None:
        self._config = config
        self._contract = contract
        self._cameras = cameras
        self.motion = Motion(config, contract)
        self.steps = ControlSteps(self.motion.in_base_frame)
        self.gate = GripperGate(
            config.gripper_change, config.gripper_settle_s, config.gripper_interval_s
        )
        self._step_gate = StepGate(config, contract.action.frame)
        self.counts: Counter[str] = Counter()
        self.episode: EpisodeStart | None = None
        self.is_intervened = False
        self.source = 'none'
        self.hold: Finding | None = None
        self._observations = 0
        self._last_step_s: float | None = None  # None: the watchdog waits for the first step
        self._cameras_since_s: float | None = None  # None: they are watched from the first step
        self._acting: set[str] = set()  # rules that act at every tick right now

    @property
    def gripper(self) -> float:
        """The opening that is in force."""
        return OPEN if self.gate.commanded is None else self.gate.commanded

    # Beginnings and ends

    def begin(self, now: Now, measured: Pose, opening: float | None) -> None:
        """Be armed: at rest where the arm is, whatever was asked before."""
        self._answer()
        self.motion.seed(measured)
        self.gate.begin(opening)
        self.hold, self.source = None, 'none'
        self._begin_anew(now)

    def end(self, finding: Finding, out: Outcome) -> None:
        """Be disarmed: the open step is answered by how far the target came."""
        self.steps.note([finding])
        self.motion.halt()
        self._answer()
        self.release(out)
        self.hold = None

    def release(self, out: Outcome) -> None:
        """Take the arm from the person who has it, if anybody has."""
        if self.is_intervened:
            self.is_intervened, self._acting = False, set()
            self._say('end', out)

    def start_episode(self, start: EpisodeStart, now: Now, out: Outcome) -> None:
        """START."""
        self._answer()
        self.episode, self._observations = start, 0
        self._last_step_s = self._cameras_since_s = None
        self._step_gate.forget()
        self.motion.begin_episode()
        self._begin_anew(now)
        if self.is_intervened:
            self._say('begin', out)

    def end_episode(self, why: str, is_live: bool, out: Outcome) -> None:
        """STOP or ERROR: nothing more of this episode is followed."""
        if is_live and not self.is_intervened:
            self.motion.stop()
        if why:
            self.steps.note([Finding('episode', why)])
        self._answer()
        if self.is_intervened:
            self._say('end', out)
        self.episode = self._last_step_s = self._cameras_since_s = None

    def _begin_anew(self, now: Now) -> None:
        self._step_gate.only_after(now.clock_ns)
        self._expect_pictures(now)
        if self._last_step_s is not None:
            self._last_step_s = now.monotonic_s

    def _expect_pictures(self, now: Now) -> None:
        """Give cameras their time again; a trial node shows none before START and in a pause."""
        if self._cameras_since_s is not None:
            self._cameras_since_s = now.monotonic_s

    def _answer(self) -> None:
        self.steps.close(self.motion.goal, self.gripper)

    def _say(self, what: str, out: Outcome) -> None:
        if self.episode is not None and self.episode.controller != TELEOP:
            out.interventions.append((what, self.episode.episode_id))

    # Control steps

    def refuse(self, step: Step, finding: Finding) -> None:
        """Answer a step that is none of this control step's affairs."""
        self.counts[finding.rule] += 1
        self.steps.refuse(step, finding, self.gripper)

    def take_step(
        self, step: Step, now: Now, measured: Pose | None, not_live: Finding | None, out: Outcome
    ) -> None:
        """Follow a step, or hold; it is answered either way.

        Args:
            step: what to follow.
            now: both clocks.
            measured: of the arm; None only where not_live says why.
            not_live: why nothing is followed at all.
            out: `acted` is set when the step is followed.

        Raises:
            GaveUp: the episode's travel is used up.
            InterpolationError: there is no way to where it leads.

        """
        if bad := self._step_gate.stray(step, self.episode) or not_live:
            self.refuse(step, bad)
            return
        self._answer()
        if self._cameras_since_s is None:  # who acts has seen something
            self._cameras_since_s = now.monotonic_s
        finding = self._step_gate.refusal(step, now, self.is_intervened)
        if finding is None:
            self._step_gate.followed(step)
        is_persons = self.is_intervened and self.hold is None
        finding = finding or self.hold
        if finding is not None:
            self.counts[finding.rule] += 1
            if finding.rule == 'policy_held':  # it is alive, and says so
                self._last_step_s = now.monotonic_s
        if is_persons or finding is not None:
            self.steps.open(step, self.motion.goal, now, TELEOP if is_persons else HOLD)
            if finding is not None:
                self.steps.note([finding], Verdict.CLAMPED if is_persons else Verdict.HELD)
            return
        self.steps.open(step, self.motion.goal, now, step.source)
        self._last_step_s, self.source, out.acted = now.monotonic_s, POLICY, step
        findings = self.motion.step(step.delta, measured)
        self.steps.note(findings)
        self.counts.update(finding.rule for finding in findings)
        self.gate.want(min(max(float(step.delta.gripper_opening), 0.0), 1.0), now.monotonic_s)
        self._check_travel()

    def observe(self, seen: Observation, now: Now, not_live: Finding | None) -> None:
        """Begin a control step of a teleoperated episode with a picture."""
        if self.episode is None or self.episode.controller != TELEOP:
            return
        step = Step(
            seen.stamp_ns,
            self._contract.action.frame,
            self.episode.episode_id,
            self._observations,
            EndEffectorDelta(np.zeros(3), np.zeros(3), self.gripper),
            TELEOP,
        )
        self._observations += 1
        self._answer()
        finding = not_live or self.hold
        if finding is None and not self.is_intervened:
            finding = Finding('not_engaged', 'nobody is engaged')
        self.steps.open(step, self.motion.goal, now, TELEOP if finding is None else HOLD)
        if finding is not None:
            self.steps.note([finding], Verdict.HELD)

    # While armed, every tick

    def follow(
        self, now: Now, measured: Pose, latest: Latest, is_paused: bool, out: Outcome
    ) -> str:
        """Do what is to be done whether or not a step came.

        Returns:
            Why nothing moves; empty where all is well.

        Raises:
            GaveUp: a person has to see to it.
            InterpolationError: there is no way to stop or to go on.

        """
        blocked = self._blocked(now, latest.deadman, is_paused)
        self._hand_over(latest.teleop, now, blocked is None, out)
        if blocked is not None:
            self._expect_pictures(now)
        self._take_hold(blocked or self._camera_problem(now), now)
        if self.hold is not None:
            return f'{self.hold.rule}: {self.hold.text}'
        if self.is_intervened:
            finding = self._drive(latest.teleop, now, measured)
        else:
            finding = self._missed(now)
        return '' if finding is None else f'{finding.rule}: {finding.text}'

    def _take_hold(self, finding: Finding | None, now: Now) -> None:
        if finding is not None and self.hold is None:
            self.counts[finding.rule] += 1
            self.steps.note([finding])
            self.motion.stop()
        elif finding is None and self.hold is not None:
            self._begin_anew(now)
        self.hold = finding

    def _blocked(self, now: Now, deadman: Deadman | None, is_paused: bool) -> Finding | None:
        if is_paused:
            return Finding('paused', 'the trial is paused')
        allowed_s = self._config.deadman_timeout_s
        if not allowed_s:
            return None
        if deadman is None or now.monotonic_s - deadman.arrived_s > allowed_s:
            return Finding('deadman', f'no word of the deadman switch for {allowed_s:g} s')
        return None if deadman.is_pressed else Finding('deadman', 'the switch is released')

    def _camera_problem(self, now: Now) -> Finding | None:
        """Say what is wrong with a camera; a person who has the arm sees for themselves."""
        since_s = self._cameras_since_s
        if self.is_intervened or self.episode is None or since_s is None:
            return None
        for camera in self._cameras:
            problem = camera.problem(now, since_s, self._config)
            if problem is not None:
                if 0 < self._config.camera_fault_s < problem.lasts_s:
                    raise GaveUp(problem.finding)
                return problem.finding
        return None

    def _hand_over(self, teleop: Teleop | None, now: Now, may_engage: bool, out: Outcome) -> None:
        if teleop is None or teleop.is_engaged == self.is_intervened:
            return
        if not teleop.is_engaged:
            self.motion.stop()
            self.release(out)
            self._begin_anew(now)
        elif may_engage and self._silent_s(teleop, now) <= self._config.teleop_timeout_s:
            self.motion.stop()
            self.is_intervened, self._acting = True, set()
            self.steps.take_over()
            self._say('begin', out)

    def _drive(self, teleop: Teleop, now: Now, measured: Pose) -> Finding | None:
        silent_s = self._silent_s(teleop, now)
        finding = None
        if silent_s > self._config.teleop_timeout_s:
            finding = Finding('teleop_silent', f'nothing from the device for {silent_s:.2f} s')
        elif not np.isfinite([*teleop.linear_m_s, *teleop.angular_rad_s]).all():
            finding = Finding('teleop_not_finite', 'the command holds NaN or infinity')
        if finding is not None:
            if finding.rule not in self._acting:
                self.motion.stop()
            self._acts([finding])
            return finding
        self._acts(self.motion.drive(teleop, measured))
        self.source = TELEOP
        if np.isfinite(teleop.gripper_opening):
            self.gate.want(min(max(teleop.gripper_opening, 0.0), 1.0), now.monotonic_s)
        self._check_travel()
        return None

    def _missed(self, now: Now) -> Finding | None:
        if self._last_step_s is None:
            return None
        silent_s = now.monotonic_s - self._last_step_s
        periods = silent_s * self._contract.control_rate_hz
        finding = Finding('step_missed', f'no step that could be followed for {silent_s:.2f} s')
        if periods > self._config.fault_after_periods:
            raise GaveUp(finding)
        if periods <= self._config.hold_after_periods:
            self._acting.discard(finding.rule)
            return None
        if finding.rule not in self._acting:
            self._answer()  # the last step ends here; what it led to is done
        self._acts([finding])
        return finding

    def _acts(self, findings: list[Finding]) -> None:
        """Count a rule when it begins to act, not at every tick."""
        self.counts.update(f.rule for f in findings if f.rule not in self._acting)
        self.steps.note(findings)
        self._acting = {finding.rule for finding in findings}

    def _check_travel(self) -> None:
        allowed_m = self._config.max_travel_m
        if allowed_m and self.episode is not None and self.motion.travel_m > allowed_m:
            text = f'{self.motion.travel_m:.2f} m in this episode; at most {allowed_m:g}'
            raise GaveUp(Finding('travel', text))

    @staticmethod
    def _silent_s(teleop: Teleop, now: Now) -> float:
        return now.monotonic_s - teleop.arrived_s
