"""The controllers of arm_controller.py as rigs of the conformance suite, over DDS."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from arm_conformance import wait_until

from grape_bringup.robot.arm import Pose
from grape_bringup.robot.arm_config import load_arm_config

HERE = Path(__file__).parent
TOPICS = {
    'crisp': '/target_pose',
    'fzi': '/cartesian_motion_controller/target_frame',
    'servo_pose': '/servo_node/pose_target_cmds',
    'servo_twist': '/servo_node/delta_twist_cmds',
}


class ControllerProcess:
    """The process and what it has written down."""

    def __init__(self, log):
        self._log = log.open('wb')
        self._popen = subprocess.Popen(
            [sys.executable, str(HERE / 'arm_controller.py')],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.heard = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self.heard, lambda: log.read_text(), 60.0)

    def order(self, **order):
        """Have it do something; return where the arm is then."""
        before = len(self.heard)
        self._popen.stdin.write(json.dumps(order) + '\n')
        self._popen.stdin.flush()

        def answer():
            assert self._popen.poll() is None, 'the controllers have died: see their log'
            return [entry for entry in self.heard[before:] if 'done' in entry]

        (done,) = wait_until(answer, str(order))
        return Pose(np.array(done['position']), np.array(done['quaternion']))

    def calls(self, since=0):
        """Return the calls after an index of `heard`, without the lists of controllers."""
        return [entry for entry in self.heard[since:] if 'call' in entry]

    def commands(self, kind):
        return [entry for entry in self.heard if entry.get('command') == kind]

    def stop(self):
        self._popen.stdin.close()
        try:
            self._popen.wait(10.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(10.0)
        self._log.close()

    def _read(self):
        for line in self._popen.stdout:
            self.heard.append(json.loads(line))


def on_node(node, make):
    """Make an output on the thread that spins its node, as make_arm_output asks."""
    done = []

    def attempt():
        try:
            done.append((make(), None))
        except Exception as error:  # for the caller; here it would end the executor
            done.append((None, error))

    node.executor.create_task(attempt)
    wait_until(lambda: done, 'the output')
    output, error = done[0]
    if error is not None:
        raise error
    return output


class TopicRig:
    """One kind of output on the shared controllers."""

    reached_m = 1e-9

    def __init__(self, kind, controllers, node):
        self.kind, self.controllers, self.node = kind, controllers, node

    def config(self, **changes):
        """Return the configuration as it is shipped, but with thresholds left alone."""
        config = load_arm_config(self.kind, state_timeout_s=1.0, **changes)
        driver = config.franka_ros2.model_copy(
            update={'collision_behavior': None, 'step_timeout_s': 1.5}
        )
        return config.model_copy(update={'franka_ros2': driver})

    def open(self, **changes):
        from grape_bringup.robot.arm_outputs import make_arm_output

        config = self.config(**changes)
        return on_node(self.node, lambda: make_arm_output(config, self.node, rate_hz=100.0))

    def shut(self, output):
        """Wait until its publisher has gone: the next output is to be the only one."""
        wait_until(lambda: not self.node.count_publishers(TOPICS[self.kind]), 'the end')

    def commands(self):
        return len(self.controllers.commands(self.kind))

    def commanded(self):
        found = self.controllers.commands(self.kind)
        if not found:
            return None
        return Pose(np.array(found[-1]['position']), np.array(found[-1]['quaternion']))

    def silence(self, is_silent):
        self.controllers.order(silent=is_silent)

    def drag(self, offset_m):
        self.controllers.order(position=(np.array([0.4, 0.0, 0.5]) + offset_m).tolist())

    def reflex(self):
        self.controllers.order(reflex='cartesian_reflex')


class TwistRig(TopicRig):
    """Servo's twists: the controller goes where the arm is, unless the last twist moves it."""

    reached_m = 2e-3

    def commands(self):
        """Count those that move the arm."""
        return sum(any(entry['twist']) for entry in self.controllers.commands(self.kind))

    def commanded(self):
        return self.controllers.order()

    def drag(self, offset_m):
        """No motion is no motion, wherever the arm is."""
