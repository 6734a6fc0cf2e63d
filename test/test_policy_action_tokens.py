"""Action tokens and units: off by one here, and every command is subtly wrong."""

import numpy as np
import pytest

from grape_policy_node.action_tokens import ActionTokenizer, NormStats

TOKENS = ActionTokenizer(32000)
STATS = NormStats.from_dict(
    {'q01': [-0.2] * 6 + [0.0], 'q99': [0.6] * 6 + [1.0], 'mask': [True] * 6 + [False]}, 'test'
)


def test_ids_are_the_last_256_before_the_padding():
    ids = TOKENS.encode(np.array([-1.0, 1.0, -5.0, 5.0]))
    assert ids.tolist() == [31999, 31744, 31999, 31744]
    assert TOKENS.first_id == 31744


def test_256_edges_and_255_centres_on_minus_one_to_one():
    assert len(TOKENS.edges) == 256 and len(TOKENS.centres) == 255
    assert TOKENS.edges[0] == -1.0 and TOKENS.edges[-1] == 1.0
    assert TOKENS.centres[0] == pytest.approx(-1.0 + 1.0 / 255.0)


def test_zero_is_the_middle_token():
    """0 lies in the 128th bin: edge 127 is -1/255, edge 128 is +1/255."""
    assert TOKENS.encode(np.array([0.0])).tolist() == [32000 - 128]
    assert TOKENS.decode(np.array([32000 - 128]))[0] == pytest.approx(0.0, abs=1e-12)


def test_decoding_is_within_half_a_bin_of_what_was_encoded():
    actions = np.linspace(-1.0, 1.0, 10001)
    error = np.abs(TOKENS.decode(TOKENS.encode(actions)) - actions)
    assert error.max() <= 1.0 / 255.0 + 1e-12


def test_the_two_lowest_ids_mean_the_same_action():
    """255 centres for 256 ids: why recorded ids are trained on and never re-encoded ones."""
    low = TOKENS.decode(np.array([31744, 31745]))
    assert low[0] == low[1]
    assert TOKENS.encode(low).tolist() == [31745, 31745]


def test_all_other_ids_survive_the_round_trip():
    ids = np.arange(31745, 32000)
    np.testing.assert_array_equal(TOKENS.encode(TOKENS.decode(ids)), ids)


@pytest.mark.parametrize('wrong', [31743, 32000, 29871])
def test_an_id_that_is_no_action_is_refused(wrong):
    with pytest.raises(ValueError, match='31744..31999'):
        TOKENS.decode(np.array([31800, wrong]))


def test_nan_is_not_encoded():
    with pytest.raises(ValueError, match='NaN'):
        TOKENS.encode(np.array([0.0, np.nan]))


def test_unnormalise_scales_masked_dimensions_and_leaves_the_gripper():
    actions = STATS.unnormalise(np.array([-1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.25]))
    np.testing.assert_allclose(actions, [-0.2, 0.2, 0.6, 0.4, 0.2, 0.2, 0.25], atol=1e-12)


def test_normalise_is_the_inverse_within_bounds():
    actions = np.array([[-0.2, 0.1, 0.6, 0.0, 0.3, 0.5, 1.0], [0.0] * 7])
    np.testing.assert_allclose(STATS.unnormalise(STATS.normalise(actions)), actions, atol=1e-12)


def test_normalise_clips_outliers_and_survives_a_constant_dimension():
    stats = NormStats.from_dict({'q01': [0.0] * 7, 'q99': [0.0] + [1.0] * 6}, 'test')
    np.testing.assert_allclose(stats.normalise(np.full(7, 9.0)), [0.0] + [1.0] * 6)


def test_statistics_without_percentiles_say_what_is_missing():
    with pytest.raises(ValueError, match=r"lack \['q99'\]"):
        NormStats.from_dict({'q01': [0.0] * 7, 'mean': [0.0] * 7}, 'bridge')
