"""What SFT is fed with: no-op filtering, statistics, augmentation, micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring_trials import START_M, Phase, make_trial

from grape_policy_node.action_tokens import NormStats
from grape_trainer.augmentation import augment
from grape_trainer.dataset import DataError
from grape_trainer.demonstrations import action_statistics, noops
from grape_trainer.token_data import TokenData


def still_trial(steps):
    """An episode that stands still with an open gripper."""
    trial = make_trial((Phase(steps / 20, START_M),))
    return replace(trial, rotation_rotvec_rad=np.zeros((steps, 3)))


def test_liberos_noop_is_a_still_normalised_pose_with_a_still_gripper():
    trial = still_trial(6)
    scale_m = trial.contract.action.translation_scale_m
    trial.translation_m[1, 0] = 1e-3 * scale_m  # moves
    trial.gripper_command[2:] = 0.0  # the gripper closes at step 2 and stays
    trial.rotation_rotvec_rad[4, 2] = 1e-6  # below the limit
    assert noops(trial, 'libero').tolist() == [True, False, False, True, True, True]
    assert not noops(trial, 'none').any()


def test_rl4vlas_noop_is_a_small_metric_motion_with_a_still_gripper():
    trial = still_trial(6)
    trial.translation_m[0] = (0.006, 0.0, 0.007)  # 9.2 mm
    trial.translation_m[1] = (0.008, 0.0, 0.007)  # 10.6 mm
    trial.rotation_rotvec_rad[2] = (0.04, 0.0, 0.04)  # 0.057 rad
    trial.rotation_rotvec_rad[3] = (0.05, 0.0, 0.04)  # 0.064 rad
    trial.gripper_command[5] = 0.0
    assert noops(trial, 'rl4vla').tolist() == [True, False, True, False, True, False]


def test_unknown_noop_rule_is_an_error():
    with pytest.raises(DataError, match="rule is 'all'; expected none, libero or rl4vla"):
        noops(still_trial(2), 'all')


def test_statistics_are_the_percentiles_and_leave_the_gripper_alone():
    actions = np.linspace(-1, 1, 101)[:, None].repeat(7, 1)
    entry = action_statistics(actions, episodes=3)
    assert entry['action']['q01'] == pytest.approx([-0.98] * 7)
    assert entry['action']['q99'] == pytest.approx([0.98] * 7)
    assert entry['action']['mask'] == [True] * 6 + [False]
    assert (entry['num_transitions'], entry['num_trajectories']) == (101, 3)
    stats = NormStats.from_dict(entry['action'], 'here')
    assert stats.normalise(actions[0])[6] == -1.0
    assert stats.unnormalise(stats.normalise(actions[50])) == pytest.approx(actions[50])


def test_shift_moves_the_picture_and_repeats_its_edge():
    image = torch.arange(25, dtype=torch.uint8).view(1, 5, 5, 1).expand(1, 5, 5, 3)
    for seed in range(20):
        out = augment(image, 2, 0.0, 0.0, torch.Generator().manual_seed(seed))
        assert out.dtype == torch.uint8 and out.shape == image.shape
        row, column = divmod(int(out[0, 2, 2, 0]), 5)
        down, right = row - 2, column - 2
        rows = (torch.arange(5) + down).clamp(0, 4)
        columns = (torch.arange(5) + right).clamp(0, 4)
        assert torch.equal(out, image[:, rows][:, :, columns])


def test_light_changes_stay_in_range_and_follow_the_generator():
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    draw = [
        augment(images, 1, 0.3, 0.3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert draw[0].dtype == torch.float32
    assert draw[0].min() >= 0 and draw[0].max() <= 255


def test_no_augmentation_changes_nothing():
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert augment(images, 0, 0.0, 0.0, torch.Generator()) is images


def test_micro_batches_have_one_prompt_length_and_hold_every_row_once():
    prompts = ((1, 5, 6), (1, 7, 8), (1, 9))
    data = TokenData(
        images=torch.zeros(9, 2, 2, 3, dtype=torch.uint8),
        token_ids=torch.zeros(9, 7, dtype=torch.int64),
        prompt_index=np.array([0, 1, 2] * 3),
        prompts=prompts,
        names=('a',) * 9,
    )
    groups = data.groups(range(9), limit=4)
    assert sorted(sum(groups, [])) == list(range(9))
    assert max(map(len, groups)) <= 4
    for group in groups:
        assert data.input_ids(group).shape == (len(group), len(prompts[group[0] % 3]))
