"""LIBERO behind the protocol: the same episode every time, whatever was played before."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sim_bridge.environment import SimulatorError, UnknownTaskError, check_environment
from sim_bridge.libero_tasks import parse_task
from sim_bridge.rollout import ActuationNoise, play

pytestmark = pytest.mark.sim

TASK = 'libero_object/0'
# Measured with mujoco 3.3.2 and robosuite 1.4.0, initial state 0, settled, fast rendering.
TARGET_M = (0.4804, -0.2405, 0.0381)
MEAN_COLOUR = (144.6, 138.5, 132.4)  # at 96 px


@pytest.fixture(scope='module')
def seen():
    """One environment with a camera for all tests of TASK: building one takes seconds."""
    from sim_bridge.libero import LiberoEnvironment

    env = LiberoEnvironment(96, 'fast')
    yield env
    env.close()


@pytest.fixture(scope='module')
def blind():
    """An environment that renders nothing."""
    from sim_bridge.libero import LiberoEnvironment

    env = LiberoEnvironment(None)
    yield env
    env.close()


def track(env, actions, init_state=0):
    """Return the simulator's whole state after reset and after each action."""
    env.reset(TASK, init_state, 0)
    states = []
    for action in [None, *actions]:
        if action is not None:
            env.step(np.array(action))
        data = env.scene.data
        states.append(np.concatenate([data.qpos, data.qvel, data.ctrl]))
    return np.array(states)


def test_libero_passes_the_conformance_check(seen):
    assert check_environment(seen, TASK) == []


def test_an_episode_does_not_depend_on_what_was_played_before(blind):
    """Soft resets once kept the gripper's last command (robosuite's gripper.current_action)."""
    actions = [(0.3, 0.1, -0.5, 0, 0, 0.1, 1.0)] * 8
    first = track(blind, actions)
    for init_state, gripper, steps in ((1, 0.0, 3), (2, 1.0, 7), (0, 0.0, 12)):
        track(blind, [(-0.2, 0.1, -0.6, 0.1, 0, 0, gripper)] * steps, init_state)
        np.testing.assert_array_equal(track(blind, actions), first)


def test_rendering_does_not_touch_the_physics(seen, blind):
    """Thinned meshes and switched-off effects are for the eye only: bit-equal states."""
    from sim_bridge.libero import LiberoEnvironment

    down = [(0.1, -0.2, -1.0, 0, 0, 0.2, 1.0)] * 15 + [(0, 0, 0, 0, 0, 0, 0.0)] * 5
    fast = track(seen, down)
    np.testing.assert_array_equal(fast, track(blind, down))
    stock = LiberoEnvironment(96, 'stock')
    try:
        np.testing.assert_array_equal(fast, track(stock, down))
        close = np.abs(
            stock.reset(TASK, 0, 0).images['agentview'].astype(int)
            - seen.reset(TASK, 0, 0).images['agentview']
        )
    finally:
        stock.close()
    assert close.mean() < 12, 'fast pictures have become another scene'


def test_pictures_are_upside_down_as_the_contract_expects_them(seen):
    """Against MuJoCo's own renderer, which turns the rows round; the contract turns ours."""
    import mujoco

    raw = seen.reset(TASK, 0, 0).images['agentview'].astype(int)
    with mujoco.Renderer(seen.scene.model, 96, 96) as renderer:
        renderer.update_scene(seen.scene.data, 'agentview')
        upright = renderer.render().astype(int)
    upside_down, as_it_is = (np.abs(raw - other).mean() for other in (upright[::-1], upright))
    assert upside_down < 15 < as_it_is


def test_a_framebuffer_that_holds_garbage_is_an_error_before_the_first_step(seen, monkeypatch):
    """Once an environment returned uninitialised memory as pictures, and nobody complained."""
    import mujoco

    def garbage(rgb, **_):
        rgb[:] = np.random.default_rng(0).integers(0, 255, rgb.shape)

    with monkeypatch.context() as patch:
        patch.setattr(mujoco, 'mjr_readPixels', garbage)
        with pytest.raises(SimulatorError, match=r'filled with \(255, 0, 255\) and reads'):
            seen.reset(TASK, 0, 0)
    assert check_environment(seen, TASK, steps=10) == []


def test_unknown_tasks_and_initial_states_are_named_with_the_choices(blind):
    for task in ('libero_object/10', 'libero_object', 'libero_object/-1', 'nope/0', ''):
        with pytest.raises(UnknownTaskError, match='libero_spatial, libero_object'):
            parse_task(task)
    assert parse_task('libero_long/3') == ('libero_10', 3)
    for init_state in (50, -1):
        with pytest.raises(UnknownTaskError, match=rf'states 0\.\.49; got {init_state}'):
            blind.reset(TASK, init_state, 0)


def test_step_before_reset_and_an_action_that_is_not_finite_are_errors(blind):
    from sim_bridge.libero import LiberoEnvironment

    with pytest.raises(SimulatorError, match='before reset'):
        LiberoEnvironment(None).step(np.zeros(7))
    blind.reset(TASK, 0, 0)
    with pytest.raises(SimulatorError, match='not finite'):
        blind.step(np.array([0, np.nan, 0, 0, 0, 0, 1.0]))


def test_the_expert_succeeds_from_held_out_initial_states(blind):
    from sim_bridge.expert import ATTEMPTS, Expert

    for task in ('libero_object/0', 'libero_spatial/0'):
        for attempt in range(len(ATTEMPTS)):
            start = blind.reset(task, 20, 0)
            expert = Expert(blind, attempt)
            done = play(blind, lambda _, e=expert: e.action(), start, 280)
            if done.success:
                break
        assert done.success and attempt <= 1, f'{task}: {done} at attempt {attempt}'
        assert done.collisions == 0


def test_the_expert_refuses_goals_that_it_cannot_do(blind):
    from sim_bridge.expert import Expert

    blind.reset('libero_goal/0', 0, 0)  # open the middle drawer
    with pytest.raises(SimulatorError, match="turns on only; this task asks for .*'open'"):
        Expert(blind)
    blind.reset(TASK, 0, 0)
    with pytest.raises(SimulatorError, match=r'attempt 9; expected 0\.\.4'):
        Expert(blind, 9)


def test_the_scene_is_the_benchmarks(seen):
    """A fingerprint: newer MuJoCo versions draw LIBERO darker and let a bowl tilt."""
    import mujoco

    start = seen.reset(TASK, 0, 0)
    info = seen.task_info()
    assert (info.target, info.receptacle) == ('alphabet_soup_1', 'basket_1')
    assert (info.instruction, info.init_states, info.max_steps) == (
        'pick up the alphabet soup and place it in the basket', 50, 280,
    )  # fmt: skip
    text = f'mujoco is {mujoco.__version__}; LIBERO was measured with 3.3.2'
    # Nothing beside the bodies: a task that acts on no part is scored as it always was.
    assert start.scene.names == (*seen.scene.bodies, 'gripper')
    assert (info.parts, info.joints, info.not_obstacles) == ({}, {}, ())
    target = start.scene.positions_m[start.scene.names.index(info.target)]
    np.testing.assert_allclose(target, TARGET_M, atol=1e-3, err_msg=text)
    colour = start.images['agentview'].mean((0, 1))
    np.testing.assert_allclose(colour, MEAN_COLOUR, atol=2.0, err_msg=text)


def test_actuation_noise_is_seeded_and_leaves_the_gripper_alone():
    action = np.array([0.1, 0, 0, 0, 0, 0, 1.0])
    first, again, other = (ActuationNoise(0.25, seed)(action) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first[6] == 1.0 and (first[:6] != action[:6]).all()
    assert ActuationNoise(0.0, 3)(action) is action
    for std in (-0.1, 2.0, float('nan')):
        with pytest.raises(ValueError, match='expected 0 or more'):
            ActuationNoise(std, 0)


@pytest.mark.parametrize('asks', [True, False])
def test_libero_that_asks_for_its_folders_is_answered_before_it_asks(tmp_path, asks):
    """hf-libero and LIBERO from source wait for a person at their first import."""
    package = tmp_path / 'site' / 'libero' / 'libero'
    package.mkdir(parents=True)
    (package.parent / '__init__.py').write_text('')
    (package / '__init__.py').write_text('input("where?")' if asks else '')
    code = 'from sim_bridge.libero_tasks import prepare_import; prepare_import()'
    environment = os.environ | {
        'PYTHONPATH': str(tmp_path / 'site'), 'LIBERO_CONFIG_PATH': str(tmp_path / 'config'),
    }  # fmt: skip
    subprocess.run([sys.executable, '-c', code], env=environment, check=True)
    written = tmp_path / 'config' / 'config.yaml'
    assert written.is_file() == asks
    if asks:
        assert f'init_states: {package}/init_files' in written.read_text()


def test_at_10_hz_an_action_is_held_for_two_of_liberos_steps(seen):
    from sim_bridge.libero import LiberoEnvironment

    actions = np.array([(0.4, 0.2, -0.5, 0, 0, 0.1, 1.0), (0.0, -0.6, -1.0, 0, 0, 0, 0.0)])
    full = track(seen, np.repeat(actions, 2, axis=0))
    half = LiberoEnvironment(96, 'fast', rate_hz=10)
    try:
        np.testing.assert_array_equal(track(half, actions), full[::2])
        assert half.task_info().max_steps == seen.task_info().max_steps // 2
        seen.step(actions[0])
        # Its pictures too are those of the second step.
        np.testing.assert_array_equal(
            half.step(actions[0]).images['agentview'], seen.step(actions[0]).images['agentview']
        )
    finally:
        half.close()


def test_a_rate_that_is_no_fraction_of_20_hz_is_refused():
    from sim_bridge.libero import LiberoEnvironment

    with pytest.raises(ValueError, match='15 Hz; LIBERO runs at 20 Hz'):
        LiberoEnvironment(None, rate_hz=15)
