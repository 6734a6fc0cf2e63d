"""What goes into the model: the same question and the same pixels, always."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from policy_tiny import DRAWER, MILK, edit_json, picture, tiny_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

from grape_policy_node.openvla.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from grape_policy_node.openvla.processor import PixelTransform, prompt_text
from grape_policy_node.openvla.tokenizer import read_tokenizer

SENTENCEPIECE = Path(__file__).parent / 'data' / 'sentencepiece.model'
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


def test_version_01_asks_as_vicuna_was_asked():
    assert prompt_text('Go', 'vicuna') == (
        'A chat between a curious user and an artificial intelligence assistant. The assistant '
        "gives helpful, detailed, and polite answers to the user's questions. USER: What action "
        'should the robot take to go? ASSISTANT:'
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
        ({'means': None}, 'one or two vision towers'),
    ],
)
def test_a_pipeline_that_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PixelTransform.from_dict({**PUBLISHED, **change}, 'test')


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tiny_checkpoint(), tmp_path / 'tiny')


def words(count, space='▁'):
    """A tokenizer of so many words, the fourth of which is the lone space."""
    vocabulary = {'<unk>': 0, '<s>': 1, '</s>': 2, space: 3}
    vocabulary |= {f'w{index}': index for index in range(4, count)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize('count', [704, 960])
def test_a_tokenizer_ends_before_the_action_ids_or_with_them(folder, count):
    words(count).save(str(folder / 'tokenizer.json'))
    assert load_checkpoint(folder).processor.prompt_ids('w9')[-1] == 3


@pytest.mark.parametrize(
    ('tokenizer', 'message'),
    [
        (words(1100), 'has the id 1099, the model has 1024 rows'),
        (words(961), 'has 961 words; expected 960'),
        (words(800), 'has 800 words; expected 960'),
        (words(700, space='x'), r"empty token 3, .* is 'x' in it; expected a lone space"),
    ],
)
def test_a_tokenizer_of_another_vocabulary_is_refused(folder, tokenizer, message):
    tokenizer.save(str(folder / 'tokenizer.json'))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_small_tokenizer_needs_an_empty_token_of_its_own(folder):
    """Without that key the vocabulary is Llama-2's, whose last words are the actions."""
    edit_json(folder / 'config.json', empty_token_id=None)
    with pytest.raises(CheckpointError, match='expected 960'):
        load_checkpoint(folder)


def test_a_tokenizer_with_another_bos_is_refused(folder):
    config = {'bos_token_id': 2}
    text = load_checkpoint(folder).model.spec.text
    edit_json(folder / 'config.json', text_config=text | config)
    with pytest.raises(CheckpointError, match='bos_token_id 2 in config.json'):
        load_checkpoint(folder)


def test_padding_and_truncation_left_in_the_file_do_not_count(folder):
    expected = load_checkpoint(folder).processor.prompt_ids(MILK)
    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / 'tokenizer.json'))
    assert load_checkpoint(folder).processor.prompt_ids(MILK) == expected


def test_a_broken_tokenizer_is_named(folder):
    (folder / 'tokenizer.json').write_text('{}')
    with pytest.raises(CheckpointError, match=r'tokenizer\.json is not a readable tokenizer'):
        load_checkpoint(folder)


def test_a_sentencepiece_model_is_converted_with_the_same_ids(tmp_path):
    """The expected ids are sentencepiece's own; the newline is a byte of its fallback."""
    pytest.importorskip('sentencepiece')
    shutil.copy(SENTENCEPIECE, tmp_path / 'tokenizer.model')
    tokenizer = read_tokenizer(tmp_path)
    ids = tokenizer.encode(prompt_text('pick up the cup'), add_special_tokens=False).ids
    assert ids == [
        287, 392, 299, 304, 305, 261, 303, 302, 292, 301, 293, 261, 325, 393, 13, 369, 392,
    ]  # fmt: skip
    assert tokenizer.token_to_id('▁') == 376


def test_a_sentencepiece_model_without_its_library_says_what_to_run(tmp_path, monkeypatch):
    shutil.copy(SENTENCEPIECE, tmp_path / 'tokenizer.model')
    monkeypatch.setitem(sys.modules, 'sentencepiece', None)
    with pytest.raises(CheckpointError, match='pip install sentencepiece'):
        read_tokenizer(tmp_path)
