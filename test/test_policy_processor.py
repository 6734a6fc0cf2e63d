"""What goes into the model: the same question and the same pixels, always."""

import numpy as np
import pytest
from PIL import Image
from policy_tiny import DRAWER, MILK, picture, tiny_checkpoint

from grape_policy_node.openvla.processor import PixelTransform, prompt_text

PUBLISHED = {
    'image_resize_strategy': 'resize-naive',
    'input_sizes': [[3, 224, 224]] * 2,
    'interpolations': ['bicubic'] * 2,
    'means': [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]],
    'stds': [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]],
}


def test_prompt_is_openvlas_question_with_a_lower_cased_instruction():
    assert prompt_text('Put the Bowl DOWN') == (
        'In: What action should the robot take to put the bowl down?\nOut:'
    )


def test_prompt_starts_with_bos_and_ends_with_one_empty_token():
    processor = tiny_checkpoint().processor
    ids = processor.prompt_ids(MILK)
    assert ids[0] == processor.bos_token_id and ids.count(processor.bos_token_id) == 1
    assert ids[-1] == processor.empty_token_id and ids.count(processor.empty_token_id) == 1
    assert processor.tokenizer.decode(ids) == prompt_text(MILK)


def test_no_prompt_holds_an_action_token_whatever_its_language():
    checkpoint = tiny_checkpoint()
    ids = checkpoint.processor.prompt_ids('置いて 🥛 ¿qué? ' + DRAWER)
    assert max(ids) < checkpoint.model.spec.vocab_size - 256


def test_an_empty_instruction_is_refused():
    with pytest.raises(ValueError, match='instruction is empty'):
        tiny_checkpoint().processor.prompt_ids('  ')


def test_prompts_are_padded_on_the_right_only_when_lengths_differ():
    processor = tiny_checkpoint().processor
    ids, mask = processor.prompts([MILK, MILK])
    assert mask is None and ids.shape[0] == 2
    ids, mask = processor.prompts([MILK, 'go'])
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)
    assert (ids[1][mask[1] == 0] == processor.pad_token_id).all()


def test_pixels_are_pil_bicubic_normalised_twice_dinov2_first():
    image = picture(0, 300)
    pixels = PixelTransform.from_dict(PUBLISHED, 'test')(image).numpy()
    small = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    scaled = small.transpose(2, 0, 1).astype(np.float64) / 255.0
    mean, std = (np.array(PUBLISHED[k])[:, :, None, None] for k in ('means', 'stds'))
    assert pixels.shape == (6, 224, 224) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:3], (scaled - mean[0]) / std[0], atol=1e-6)
    np.testing.assert_allclose(pixels[3:], (scaled - mean[1]) / std[1], atol=1e-6)


@pytest.mark.parametrize(
    'wrong', [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8), np.zeros((3, 8, 8))]
)
def test_an_image_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match=r'expected uint8 \(H, W, 3\) RGB'):
        PixelTransform.from_dict(PUBLISHED, 'test')(wrong)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_resize_strategy': 'letterbox'}, 'resize-naive'),
        ({'interpolations': ['bilinear', 'bicubic']}, 'bicubic'),
        ({'input_sizes': [[3, 224, 224], [3, 384, 384]]}, 'different input sizes'),
        ({'means': None}, 'two vision towers'),
    ],
)
def test_a_pipeline_that_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PixelTransform.from_dict({**PUBLISHED, **change}, 'test')
