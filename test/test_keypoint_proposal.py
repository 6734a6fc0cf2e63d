"""What is in the first picture: proposers, the numbered picture, and what a click means."""

import json
import sys
from functools import partial

import numpy as np
import pytest
from keypoint_scenes import SIZE, Square, camera, render, still

from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_clicks import clicks_of_numbers, load_clicks, masks_of_clicks
from grape_trainer.scoring.keypoint_height import HeightContour
from grape_trainer.scoring.keypoint_proposal import ColourContour, draw_numbered, spread_points
from grape_trainer.scoring.keypoint_segment_anything import SegmentAnything
from grape_trainer.scoring.keypoint_source import make_proposer

HERE = {'nearest_m': 0.0, 'reach_m': 1.0}  # the camera of keypoint_scenes is above the origin


def overlap(found, mask):
    """The best intersection over union of proposals with a mask."""
    return max(((p.mask & mask).sum() / (p.mask | mask).sum() for p in found), default=0.0)


def same(first, again):
    return len(first) == len(again) and all(
        np.array_equal(a.mask, b.mask) and np.array_equal(a.points, b.points)
        for a, b in zip(first, again, strict=True)
    )


def test_the_first_point_is_the_middle_and_the_next_ones_are_the_farthest():
    """By hand: a 5 x 3 block at (10, 20); from its middle the corners are farthest."""
    mask = np.zeros((40, 40), bool)
    mask[20:23, 10:15] = True
    assert spread_points(mask, 5).tolist() == [[12, 21], [10, 20], [14, 20], [10, 22], [14, 22]]
    assert len(spread_points(mask, 99)) == 15
    with pytest.raises(KeypointError, match='mask is empty'):
        spread_points(mask & False)


def test_colour_finds_what_differs_from_the_table_and_depth_parts_what_touches():
    one, two = Square(still(20, 20, 1)), Square(still(70, 60, 1), seed=2)
    beside = Square(still(94, 60, 1), depth_m=0.85, seed=3)
    images, depths = render([one, two, beside], 1)
    found = ColourContour().propose(images[0])
    assert overlap(found, one.mask()) > 0.9
    assert overlap(found, two.mask() | beside.mask()) > 0.9 and overlap(found, two.mask()) < 0.6
    parted = ColourContour().propose(images[0], depths[0], camera())
    assert min(overlap(parted, square.mask()) for square in (one, two, beside)) > 0.9
    assert same(parted, ColourContour().propose(images[0], depths[0], camera()))
    assert ColourContour().propose(np.full((64, 64, 3), 120, np.uint8)) == ()


def test_height_finds_what_stands_on_the_table_and_what_stands_on_that():
    """A cup on a cabinet is a cup and a cabinet; the hand above the table is neither."""
    box, low = Square(still(15, 15, 1), side=40, depth_m=0.95), Square(still(80, 20, 1), side=16)
    cup = Square(still(25, 30, 1), side=14, depth_m=0.92, seed=2)
    hand = Square(still(70, 70, 1), side=30, depth_m=0.7, seed=4)
    images, depths = render([box, low, cup, hand], 1)
    found = HeightContour(**HERE).propose(images[0], depths[0], camera())
    assert len(found) == 3
    assert overlap(found, box.mask() & ~cup.mask()) == 1
    assert overlap(found, cup.mask()) == 1 and overlap(found, low.mask()) == 1
    assert same(found, HeightContour(**HERE).propose(images[0], depths[0], camera()))


def test_height_works_on_a_table_that_is_not_level_and_with_noise():
    square = Square(still(50, 40, 1), depth_m=0.94)
    images, depths = render([square], 1)
    slope = np.linspace(-0.012, 0.012, SIZE, dtype=np.float32)[:, None]
    noise = np.random.default_rng(0).normal(0, 0.002, (SIZE, SIZE)).astype(np.float32)
    found = HeightContour(rise_m=0.01, **HERE).propose(
        images[0], depths[0] + slope + noise, camera()
    )
    assert overlap(found, square.mask()) > 0.9


def test_height_without_depth_or_with_nothing_in_reach_says_what_to_do():
    images, depths = render([], 1)
    with pytest.raises(KeypointError, match='libero_rgbd'):
        HeightContour().propose(images[0])
    with pytest.raises(KeypointError, match='0 pixels have depth within reach'):
        HeightContour(**HERE).propose(images[0], depths[0] * 0, camera())


def test_numbers_are_legible_and_the_picture_itself_stays_as_it_is():
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    drawn = draw_numbered(image, np.array([[10, 10], [SIZE - 1, SIZE - 1]]))
    assert drawn.shape == (6 * SIZE, 6 * SIZE, 3) and (image == 90).all()
    marked = (drawn != 90).any(axis=2)
    assert marked[55:75, 55:95].any() and marked[-40:, -40:].any()
    assert not marked[200:500, 200:500].any()
    large = np.zeros((480, 640, 3), np.uint8)
    assert draw_numbered(large, np.array([[1.0, 2.0]])).shape == large.shape
    with pytest.raises(KeypointError, match=r'point 2 is at \[200.0, 5.0\]'):
        draw_numbered(image, np.array([[1, 1], [200, 5]]))


@pytest.fixture
def shelf():
    """A square on a larger one, and one apart; returns images, depths and their masks."""
    large, small = Square(still(15, 15, 1), side=44), Square(still(28, 30, 1), side=16, seed=2)
    apart = Square(still(80, 70, 1), side=20, seed=5)
    small = Square(small.corners, small.side, 0.9, 2)
    images, depths = render([large, small, apart], 1)
    return images[0], depths[0], [square.mask() for square in (large, small, apart)]


def test_a_click_means_the_smallest_thing_under_it(shelf):
    image, depth_m, (large, small, apart) = shelf
    found = HeightContour(**HERE).propose(image, depth_m, camera())
    clicks = {'cup': (36, 38), 'tray': (18, 50), 'box': (79, 80)}  # the last one just beside it
    masks = masks_of_clicks(clicks, found, image, depth_m, camera())
    assert np.array_equal(masks['cup'], small) and np.array_equal(masks['box'], apart)
    assert np.array_equal(masks['tray'], large & ~small)


def test_two_names_on_one_proposal_are_told_apart_by_colour():
    """A bowl in a drawer is one thing by its height; by its colour it is two."""
    left, right = Square(still(40, 40, 1), side=20), Square(still(60, 40, 1), side=20)
    images, depths = render([left, right], 1)
    image = images[0].copy()
    image[left.mask()], image[right.mask()] = (200, 40, 40), (40, 60, 200)
    both = HeightContour(**HERE).propose(image, depths[0], camera())
    assert len(both) == 1
    clicks = {'red': (48, 50), 'blue': (72, 50)}
    masks = masks_of_clicks(clicks, both, image, depths[0], camera())
    for name, square in (('red', left), ('blue', right)):
        own = square.mask()
        assert (masks[name] & own).sum() / (masks[name] | own).sum() > 0.8


def test_a_click_where_nothing_was_proposed_means_the_surface_around_it(shelf):
    image, depth_m, (_, _, apart) = shelf
    plain = image.copy()
    plain[apart] = (140, 130, 133)  # as the table's colour, and not proposed
    masks = masks_of_clicks({'box': (90, 80)}, (), plain, depth_m, camera())
    assert np.array_equal(masks['box'], apart)
    depth_m = depth_m.copy()
    depth_m[80, 90] = np.nan
    with pytest.raises(KeypointError, match=r"no depth under the click on 'box' at \[90, 80\]"):
        masks_of_clicks({'box': (90, 80)}, (), plain, depth_m, camera())
    with pytest.raises(KeypointError, match='the picture has 120 x 120'):
        masks_of_clicks({'box': (120, 80)}, (), plain, depth_m, camera())


def test_a_click_file_is_read_or_refused_with_the_name_that_is_wrong(tmp_path):
    path = tmp_path / 'clicks.json'
    with pytest.raises(KeypointError, match='no click file'):
        load_clicks(path)
    path.write_text(json.dumps({'milk_1': [10, 20.5]}))
    assert load_clicks(path) == {'milk_1': (10.0, 20.5)}
    for text, message in (
        ('{', 'is not JSON'),
        ('[]', 'expected an object'),
        ('{}', 'expected an object'),
        ('{"milk_1": [1]}', "'milk_1' is \\[1\\]"),
        ('{"milk_1": ["a", 2]}', "'milk_1'"),
        ('{"milk_1": [NaN, 2]}', "'milk_1'"),
    ):
        path.write_text(text)
        with pytest.raises(KeypointError, match=message):
            load_clicks(path)


def test_the_answer_to_a_numbered_picture_becomes_clicks(shelf):
    image, depth_m, (_, small, _) = shelf
    found = HeightContour(**HERE).propose(image, depth_m, camera())
    number = 1 + [np.array_equal(proposal.mask, small) for proposal in found].index(True)
    clicks = clicks_of_numbers(found, {'cup': number})
    masks = masks_of_clicks(clicks, found, image, depth_m, camera())
    assert np.array_equal(masks['cup'], small)
    with pytest.raises(KeypointError, match=r"\{'cup': 4\} are not in the picture; .* 1 \.\. 3"):
        clicks_of_numbers(found, {'cup': 4})


def test_segment_anything_without_package_or_weights_says_what_to_do(tmp_path, monkeypatch):
    image = np.zeros((32, 32, 3), np.uint8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'segment_anything', None)
        with pytest.raises(KeypointError, match='pip install segment-anything'):
            SegmentAnything(tmp_path / 'sam.pth').propose(image)
    with pytest.raises(KeypointError, match="'segment_anything' needs weights"):
        make_proposer('segment_anything')
    with pytest.raises(KeypointError, match='expected one of: height, colour, segment_anything'):
        make_proposer('dino')
    assert isinstance(make_proposer('colour'), ColourContour)


@pytest.fixture
def tiny_sam(monkeypatch, tmp_path):
    """Segment Anything of 64 px with random weights in a file; the name it is registered by."""
    torch = pytest.importorskip('torch')
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):  # torchvision's CUDA wheel beside a CPU torch lacks them
        if not hasattr(torch.ops.torchvision, name):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    try:
        import segment_anything
    except (ImportError, RuntimeError) as error:
        pytest.skip(f'segment_anything is not installed ({error}): pip install segment-anything')
    from segment_anything import modeling

    def build(checkpoint=None):
        torch.manual_seed(0)
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        encoder = modeling.ImageEncoderViT(
            depth=1, embed_dim=16, img_size=64, mlp_ratio=2, norm_layer=norm, num_heads=2,
            patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[0],
            window_size=2, out_chans=16,
        )  # fmt: skip
        prompt = modeling.PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        )
        transformer = modeling.TwoWayTransformer(
            depth=1, embedding_dim=16, mlp_dim=32, num_heads=2
        )
        decoder = modeling.MaskDecoder(
            num_multimask_outputs=3, transformer=transformer, transformer_dim=16,
            iou_head_depth=2, iou_head_hidden_dim=16,
        )  # fmt: skip
        sam = modeling.Sam(encoder, prompt, decoder)
        if checkpoint is not None:
            sam.load_state_dict(torch.load(checkpoint))
        return sam

    monkeypatch.setitem(segment_anything.sam_model_registry, 'tiny', build)
    torch.save(build().state_dict(), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.pth', 'tiny'


def test_segment_anythings_own_code_gives_masks_without_doubles(tiny_sam):
    """Its weights are random here: what is tested is the path, not what it finds."""
    weights, model = tiny_sam
    every = {'least_quality': -9.0, 'least_stability': 0.0, 'least_area': 0.0, 'largest_area': 1.1}
    image = render([Square(still(20, 20, 1))], 1)[0][0]
    sam = SegmentAnything(weights, model, points_per_side=5, **every)
    found = sam.propose(image)
    assert found and all(p.mask.shape == (SIZE, SIZE) and p.mask.dtype == bool for p in found)
    assert same(found, sam.propose(image))
    for index, first in enumerate(found):
        for other in found[:index]:
            assert (first.mask & other.mask).sum() / (first.mask | other.mask).sum() <= 0.7
    none = SegmentAnything(weights, model, points_per_side=5, least_quality=9.0)
    assert none.propose(image) == ()
    with pytest.raises(KeypointError, match="no model 'vit_x'"):
        SegmentAnything(weights, 'vit_x').propose(image)
    with pytest.raises(KeypointError, match='no Segment Anything weights'):
        SegmentAnything(weights.with_name('absent.pth'), model).propose(image)
