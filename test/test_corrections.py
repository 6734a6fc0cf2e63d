"""Steps that the policy did not take: kept beside what it proposed, and not taken for its own."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from episode_bags import differences, make_episode, rewrite
from learner_policy import ARCHITECTURE
from recorder_streams import ROBOT
from scoring_trials import make_trial

from grape_episode.bag import BagError, read_episode, write_episode
from grape_episode.episode import Executed
from grape_episode.outcome import Outcome
from grape_policy_node.openvla.processor import PixelTransform
from grape_trainer.dataset import DataError, load_trial
from grape_trainer.demonstrations import corrected_bags, load_demonstrations
from grape_trainer.rl_trials import read_trials
from grape_trainer.scoring.objective import load_objective
from grape_trainer.scoring.reward import score_episode
from grape_trainer.scoring.score_table import ScoreRow, read_scores, write_scores
from grape_trainer.train_sft import train_sft
from grape_trainer.training_config import SftConfig

SOURCES = ('policy', 'policy', 'teleop', 'teleop', 'hold', 'policy')
COMPLETION = load_objective('completion')


def intervened(name='e0', sources=SOURCES, **info):
    """An episode in which a person took two steps, and the guard held one."""
    steps = len(sources)
    episode = make_episode(name, steps, contract=ROBOT.to_dict(), **info)
    moved = np.array([source != 'hold' for source in sources])[:, None]
    executed = Executed(
        translation_m=episode.translation_m * moved + np.float32(0.5),
        rotation_rotvec_rad=episode.rotation_rotvec_rad * moved,
        gripper_command=np.ones(steps),
        verdict=np.array([2 * (source == 'hold') for source in sources], np.uint8),
        reasons=tuple('deadman released' if s == 'hold' else '' for s in sources),
        proposed_by=('policy',) * steps,
    )
    return replace(episode, sources=sources, executed=executed)


def without_answer(bag, step):
    """Take the guard's answer to one step out of a bag."""
    return rewrite(
        bag, lambda topic, m: [] if topic == 'executed_step' and m.step == step else [m]
    )


def test_what_was_executed_is_kept_beside_what_was_proposed(tmp_path):
    episode = intervened()
    back = read_episode(write_episode(tmp_path, episode))
    assert differences(back, episode) == []
    assert not np.array_equal(back.translation_m, back.executed.translation_m)
    assert np.array_equal(back.as_executed().translation_m, back.executed.translation_m)


def test_recording_that_broke_off_before_the_guards_answer_does_not_guess_it(tmp_path):
    bag = write_episode(tmp_path, intervened(outcome=Outcome.INTERRUPTED))
    episode = read_episode(without_answer(bag, 5))
    assert episode.sources == (*SOURCES[:5], 'unknown')
    assert np.isnan(episode.executed.translation_m[5]).all()
    assert np.isfinite(episode.executed.translation_m[:5]).all()


def test_whole_episode_without_one_of_the_guards_answers_is_an_error(tmp_path):
    bag = without_answer(write_episode(tmp_path, intervened()), 3)
    with pytest.raises(BagError, match='executed_step has no message for step 3'):
        read_episode(bag)


def test_demonstration_that_nobody_proposed_steps_for_is_what_was_executed(tmp_path):
    episode = intervened(sources=('teleop',) * 4, controller='teleop')
    driven = replace(
        episode.as_executed(),
        action_token_ids=np.zeros((4, 0), np.int64),
        token_log_probs=np.zeros((4, 0), np.float32),
    )
    back = read_episode(write_episode(tmp_path, driven))
    assert back.sources == ('teleop',) * 4 and back.action_token_ids.shape == (4, 0)
    assert np.array_equal(back.translation_m, driven.executed.translation_m)


def test_self_reward_leaves_out_the_steps_of_a_person_and_of_a_held_arm():
    trial = make_trial()  # 130 steps of 7 tokens at -1 each
    sources = ('teleop',) * 10 + ('hold',) * 5 + ('policy',) * 115
    score = score_episode(replace(trial, sources=sources), COMPLETION)
    assert (score.r_self, score.r_self_per_token, score.self_left_out) == (-805.0, -1.0, 15)
    assert score_episode(trial, COMPLETION).self_left_out == 0


def test_trial_that_a_person_drove_all_along_has_no_self_reward():
    score = score_episode(replace(make_trial(), sources=('teleop',) * 130), COMPLETION)
    assert (score.r_self, score.r_gcpg, score.self_left_out) == (None, None, 0)


def test_score_table_says_how_many_steps_were_left_out_and_older_tables_are_read(tmp_path):
    path = tmp_path / 'scores.csv'
    write_scores(path, [ScoreRow(tmp_path / 'bag', self_left_out=15)], ['reach'])
    assert read_scores(path)[0].self_left_out == 15
    lines = [line.split(',') for line in path.read_text().splitlines()]
    at = lines[0].index('self_left_out')
    path.write_text('\n'.join(','.join(x[:at] + x[at + 1 :]) for x in lines) + '\n')
    assert read_scores(path)[0].self_left_out is None


def test_corrections_are_the_persons_steps_as_the_person_made_them(tmp_path):
    bag = write_episode(tmp_path, intervened(outcome=Outcome.FAILURE))
    write_episode(tmp_path, intervened('alone', ('policy',) * 3))
    assert corrected_bags([tmp_path]) == [bag]
    demos = load_demonstrations([bag], 28, 'none', corrections=True)
    episode = read_episode(bag)
    assert len(demos) == 2
    assert np.array_equal(demos.actions, episode.as_executed().policy_actions()[2:4])
    assert np.array_equal(demos.images, episode.policy_images()[2:4])


def test_success_with_an_intervention_teaches_what_moved_the_arm(tmp_path):
    """Learned as proposed, a step that a person overruled would be taught as right."""
    bag = write_episode(tmp_path, intervened())
    demos = load_demonstrations([bag], 28, 'none')
    expected = read_episode(bag).as_executed().policy_actions()[[0, 1, 2, 3, 5]]
    assert np.array_equal(demos.actions, expected)


def test_sft_on_corrections_trains_on_the_persons_steps_alone(tmp_path):
    write_episode(tmp_path / 'bags', intervened())
    (tmp_path / 'mini.yaml').write_text(yaml.safe_dump(ARCHITECTURE))
    config = SftConfig(corrections=True, max_steps=1, torch_threads=1, noop_filter='none')
    result = train_sft(
        config, [tmp_path / 'bags'], tmp_path / 'out', architecture=tmp_path / 'mini.yaml'
    )
    assert (result.episodes, result.control_steps) == (1, 2)


def test_bags_without_corrections_are_refused_by_name(tmp_path):
    write_episode(tmp_path, intervened(sources=('policy',) * 3))
    with pytest.raises(DataError, match='1 successes and failures, none with a step that a pers'):
        corrected_bags([tmp_path])


PIXELS = PixelTransform(28, ((0.5,) * 3,) * 2, ((0.5,) * 3,) * 2)


def test_preference_learns_only_from_steps_that_the_policy_took(tmp_path):
    bag = write_episode(tmp_path, intervened())
    trial, episode = load_trial(bag, PIXELS), read_episode(bag)
    own = [0, 1, 5]
    assert trial.steps == 3
    assert np.array_equal(trial.token_ids.numpy(), episode.action_token_ids[own])
    assert np.array_equal(trial.log_probs.numpy(), episode.token_log_probs[own])
    person = write_episode(tmp_path, intervened('person', ('teleop',) * 2))
    with pytest.raises(DataError, match='followed the policy in none of its 2 steps'):
        load_trial(person, PIXELS)


def test_reinforcement_refuses_trials_that_the_policy_did_not_play_alone(tmp_path):
    bag = write_episode(tmp_path, intervened())
    with pytest.raises(DataError, match='took 3 of its steps'):
        read_trials({bag: True}, 'success', COMPLETION)
