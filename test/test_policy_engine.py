"""The engine: one model for acting and for learning, whose numbers agree."""

import numpy as np
import pytest
import torch
from policy_tiny import DRAWER, MILK, observation, picture, tiny_checkpoint

from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.engine import Engine, Observation
from grape_policy_node.openvla.decoding import ActionDecoder


@pytest.fixture(scope='module')
def engine():
    engine = Engine(tiny_checkpoint())
    engine.set_adapter('base')  # frozen: the fused path
    return engine


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_an_action_is_the_unnormalised_decoding_of_its_tokens(engine):
    prediction = engine.predict([observation(0)])[0]
    decoded = engine.action_tokenizer.decode(prediction.token_ids)
    expected = engine.norm_stats.unnormalise(decoded)
    np.testing.assert_allclose(prediction.action, expected)
    assert prediction.token_ids.dtype == np.int64 and prediction.log_probs.dtype == np.float32


@pytest.mark.parametrize('fuse', [True, False])
def test_cached_decoding_equals_llama_for_causal_lm(engine, fuse):
    """Greedy over all words, so that the choice itself is compared too."""
    model = engine.model
    pixels = engine.processor.pixel_values([picture(3), picture(4)])
    ids, mask = engine.processor.prompts([MILK, 'go'])
    embeds, seen = model.embed(pixels, ids, mask)
    decoder = ActionDecoder(model.language_model, fuse=fuse)
    generated = decoder.generate(embeds, seen, lambda logits, _: logits.argmax(-1))
    for row in range(2):
        length = int(mask[row].sum())
        chosen = generated.token_ids[row]
        with torch.no_grad():
            whole = model(pixels[row : row + 1], ids[row : row + 1, :length], None, chosen[None])
        logits = whole[0, -ACTION_DIMS - 1 : -1]
        assert logits.argmax(-1).tolist() == chosen.tolist()
        expected = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        torch.testing.assert_close(generated.log_probs[row], expected, atol=1e-5, rtol=0)


def test_action_logits_equal_the_whole_forward_at_seven_positions(engine):
    pixels = engine.processor.pixel_values([picture(1), picture(2)])
    ids, mask = engine.processor.prompts(['go', DRAWER])
    actions = torch.tensor([[800, 801, 802, 803, 804, 805, 806]] * 2)
    with torch.no_grad():
        logits = engine.model.action_logits(pixels, ids, actions, mask)
        for row in range(2):
            prompt = ids[row : row + 1, : int(mask[row].sum())]
            whole = engine.model(pixels[row : row + 1], prompt, None, actions[row : row + 1])
            torch.testing.assert_close(logits[row], whole[0, -8:-1], atol=1e-5, rtol=1e-5)


def test_a_batch_gives_each_observation_what_it_gets_alone(engine):
    observations = [observation(5), observation(6, 'go', 80), observation(7, DRAWER)]
    batch = engine.predict(observations, 1.0, generators(1, 2, 3))
    for index, item in enumerate(observations):
        alone = engine.predict([item], 1.0, generators(index + 1))[0]
        assert alone.token_ids.tolist() == batch[index].token_ids.tolist()
        np.testing.assert_allclose(alone.log_probs, batch[index].log_probs, atol=1e-5)


@pytest.mark.parametrize('temperature', [0.0, 0.7, 1.5])
def test_log_probs_of_a_trajectory_equal_the_recorded_ones(engine, temperature):
    images = np.stack([picture(seed) for seed in range(9)])
    steps = [
        engine.predict([Observation(image, MILK)], temperature, generators(seed))[0]
        for seed, image in enumerate(images)
    ]
    recorded = np.stack([step.log_probs for step in steps])
    with torch.no_grad():
        scored = engine.trajectory_log_probs(
            images, MILK, np.stack([step.token_ids for step in steps]), chunk=4
        )
    assert scored.shape == (9, 7) and scored.dtype == torch.float32
    np.testing.assert_allclose(scored.numpy(), recorded, atol=1e-4)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.2)],
)
def test_recorded_and_bulk_log_probs_agree_within_the_stated_tolerance(dtype, tolerance):
    """docs/reference/policy.md states these; half precision rounds each path differently."""
    checkpoint = tiny_checkpoint()
    checkpoint.model.to(dtype)
    half = Engine(checkpoint)
    half.set_adapter('base')
    images = np.stack([picture(seed) for seed in range(6)])
    steps = [
        half.predict([Observation(image, MILK)], 1.0, generators(seed))[0]
        for seed, image in enumerate(images)
    ]
    with torch.no_grad():
        scored = half.trajectory_log_probs(images, MILK, np.stack([s.token_ids for s in steps]))
    assert scored.dtype == torch.float32
    np.testing.assert_allclose(scored, np.stack([s.log_probs for s in steps]), atol=tolerance)


def test_only_action_tokens_are_chosen_even_when_words_are_likelier(engine):
    model = tiny_checkpoint().model
    with torch.no_grad():
        model.language_model.lm_head.weight[:600] *= 50.0
    louder = Engine(tiny_checkpoint())
    louder.model.load_state_dict(model.state_dict())
    for temperature in (0.0, 2.0):
        ids = louder.predict([observation(0)], temperature, generators(0))[0].token_ids
        assert ids.min() >= louder.action_tokenizer.first_id
        assert ids.max() < louder.action_tokenizer.vocab_size


def test_log_probs_are_the_full_vocabularys_at_temperature_one(engine):
    cold = engine.predict([observation(0)], 1e-6, generators(0))[0]
    greedy = engine.predict([observation(0)])[0]
    assert cold.token_ids.tolist() == greedy.token_ids.tolist()
    np.testing.assert_allclose(cold.log_probs, greedy.log_probs, atol=1e-6)
    assert (greedy.log_probs < -1e-3).all()


def test_the_same_seed_draws_the_same_actions_and_another_one_others(engine):
    def draw(seed):
        generator = generators(seed)
        return [engine.predict([observation(0)], 1.0, generator)[0].token_ids.tolist()
                for _ in range(3)]  # fmt: skip

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)
    assert draw(4)[0] != draw(4)[1]


def test_sampling_without_a_generator_is_refused(engine):
    with pytest.raises(ValueError, match='0 generators for 1 observations'):
        engine.predict([observation(0)], 1.0)


@pytest.mark.parametrize('temperature', [-0.1, float('nan')])
def test_a_temperature_that_is_none_is_refused(engine, temperature):
    with pytest.raises(ValueError, match='temperature'):
        engine.predict([observation(0)], temperature)


def test_chunks_do_not_change_log_probs(engine):
    images = np.stack([picture(seed) for seed in range(5)])
    ids = np.full((5, 7), 800)
    with torch.no_grad():
        one, many = (engine.trajectory_log_probs(images, MILK, ids, chunk=c) for c in (5, 2))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_log_probs_are_differentiable_and_reach_all_that_runs():
    engine = Engine(tiny_checkpoint())
    engine.trajectory_log_probs(picture(0)[None], MILK, np.full((1, 7), 800)).sum().backward()
    without = {n for n, p in engine.model.named_parameters() if p.grad is None}
    assert without and all('vision_backbone' in name for name in without)
    assert all(
        part in name
        for name in without
        for part in [next((x for x in ('blocks.2.', 'norm', 'attn_pool') if x in name), 'NONE')]
    )


def test_acting_sees_a_training_step_at_once(engine):
    """The merged copy must never be older than the weights."""
    trained = Engine(tiny_checkpoint())
    trained.set_adapter('base')
    before = trained.predict([observation(0)])[0]
    with torch.no_grad():
        trained.model.language_model.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    after = trained.predict([observation(0)])[0]
    assert not np.allclose(before.log_probs, after.log_probs)
    with torch.no_grad():
        scored = trained.trajectory_log_probs(picture(0)[None], MILK, after.token_ids[None])
    np.testing.assert_allclose(scored[0].numpy(), after.log_probs, atol=1e-4)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_broken_weights_are_an_error_and_not_an_action(temperature):
    broken = Engine(tiny_checkpoint())
    with torch.no_grad():
        broken.model.projector.fc3.bias.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='not finite'):
        broken.predict([observation(0)], temperature, generators(0))


def test_mismatched_images_and_tokens_are_refused(engine):
    with pytest.raises(ValueError, match='2 images and 3 rows'):
        engine.trajectory_log_probs(np.stack([picture(0)] * 2), MILK, np.full((3, 7), 800))
