"""The contract: one YAML for all, and no key that nobody reads."""

from pathlib import Path

import numpy as np
import pytest

from grape_episode.action import EndEffectorDelta, from_policy_units, to_policy_units
from grape_episode.contract import Contract, ContractError, load_contract

CENTRE_CROP = Path(__file__).parent / 'data' / 'centre_crop.npz'


@pytest.fixture
def data():
    return load_contract('libero').to_dict()


def with_crop(data, crop):
    data['cameras']['agentview'].update(
        height=20, width=40, transform={'rotate_deg': 0, 'crop': crop}
    )
    return Contract.from_dict(data)


def test_contract_survives_plain_data(data):
    assert Contract.from_dict(data) == load_contract('libero')


@pytest.mark.parametrize(
    'where', [(), ('action',), ('cameras', 'agentview'), ('cameras', 'agentview', 'transform')]
)
def test_unknown_key_is_an_error_that_names_it(data, where):
    inner = data
    for key in where:
        inner = inner[key]
    inner['rotat_deg'] = 90
    with pytest.raises(ContractError, match=r'rotat_deg.*not permitted'):
        Contract.from_dict(data, 'mine.yaml')


def test_missing_key_and_bad_range_are_named_together(data):
    del data['base_frame']
    data['action']['translation_scale_m'] = 0
    with pytest.raises(ContractError, match='base_frame.*translation_scale_m') as caught:
        Contract.from_dict(data, 'mine.yaml')
    assert str(caught.value).startswith('mine.yaml')


def test_unknown_name_lists_the_contracts_that_there_are():
    with pytest.raises(ContractError, match="no contract 'lihero'.*libero"):
        load_contract('lihero')


def test_file_that_is_no_mapping_is_an_error(tmp_path):
    path = tmp_path / 'list.yaml'
    path.write_text('- 1')
    with pytest.raises(ContractError, match='holds list; expected a mapping'):
        load_contract(path)


def test_policy_camera_and_topics_must_fit_together(data):
    data['policy_camera'] = 'wrist'
    with pytest.raises(ContractError, match="'wrist' is not one of: agentview"):
        Contract.from_dict(data)
    data['policy_camera'] = 'agentview'
    data['topics'] = [t for t in data['topics'] if t['role'] != 'image']
    with pytest.raises(ContractError, match='has no image entry'):
        Contract.from_dict(data)


def test_rotation_by_180_degrees_turns_the_picture_once():
    contract = load_contract('libero')
    raw = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    image = contract.apply_image('agentview', raw)
    assert image.flags.c_contiguous
    assert np.array_equal(image, np.rot90(raw, 2))


def test_crop_is_taken_in_fractions_of_the_rotated_picture(data):
    contract = with_crop(data, [0.5, 0.25, 0.5, 0.5])
    raw = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    assert np.array_equal(contract.apply_image('agentview', raw), raw[10:20, 10:30])


def test_crop_outside_the_picture_is_an_error(data):
    with pytest.raises(ContractError, match='leaves the picture'):
        with_crop(data, [0.6, 0, 0.5, 1])


def with_centre_crop(data, area, height, width):
    data['cameras']['agentview'].update(
        height=height, width=width, transform={'rotate_deg': 180, 'centre_crop_area': area}
    )
    return Contract.from_dict(data)


@pytest.mark.parametrize('name', ['noise', 'smooth'])
def test_the_centre_crop_is_openvlas_to_the_bit(data, name):
    """A crop in whole pixels (212 of 224) would be another picture than TensorFlow's."""
    stored = np.load(CENTRE_CROP)
    upright, expected = stored[f'{name}.in'], stored[f'{name}.out']
    contract = with_centre_crop(data, 0.9, *upright.shape[:2])
    assert np.array_equal(contract.apply_image('agentview', np.rot90(upright, 2)), expected)


def test_the_whole_picture_as_centre_crop_changes_nothing(data):
    raw = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = with_centre_crop(data, 1.0, 30, 40).apply_image('agentview', raw)
    assert np.array_equal(image, np.rot90(raw, 2))


@pytest.mark.parametrize('area', [0, 1.1, -0.9])
def test_a_centre_crop_beyond_the_picture_is_an_error(data, area):
    with pytest.raises(ContractError, match='centre_crop_area'):
        with_centre_crop(data, area, 30, 40)


def test_a_contract_without_centre_crop_is_written_as_it_always_was(data):
    """Its hash is in manifests and bags."""
    assert set(data['cameras']['agentview']['transform']) == {'rotate_deg', 'crop'}
    cropped = load_contract('libero_openvla')
    assert Contract.from_dict(cropped.to_dict()) == cropped
    assert cropped.cameras['agentview'].transform.centre_crop_area == 0.9


@pytest.mark.parametrize(
    ('shape', 'dtype'), [((112, 224, 3), np.uint8), ((224, 224, 3), np.float32)]
)
def test_picture_of_another_form_is_an_error_with_both_forms(shape, dtype):
    with pytest.raises(ContractError, match=r'expects\s+uint8 \(224, 224, 3\)') as caught:
        load_contract('libero').apply_image('agentview', np.zeros(shape, dtype))
    assert str(shape) in str(caught.value)


def test_smaller_pictures_need_one_number():
    contract = load_contract('libero').with_camera_size(56)
    camera = contract.cameras['agentview']
    assert (camera.height, camera.width) == (56, 56)


def test_missing_messages_counts_one_more_state_than_steps():
    contract = load_contract('libero')
    counts = {topic.name: 5 for topic in contract.topics}
    missing = contract.missing_messages(counts, 5)
    assert missing == {'joint_states': 1, 'ee_pose': 1, 'scene_state': 1}
    assert contract.missing_messages(counts, 4) == {}


def test_action_keeps_its_value_from_policy_units_to_metres_and_back():
    spec = load_contract('libero').action
    action = np.array([1.0, -0.5, 0.25, 1.0, -1.0, 0.5, 0.75])
    delta = from_policy_units(action, spec)
    assert delta.translation_m.tolist() == [0.05, -0.025, 0.0125]
    assert delta.rotation_rotvec_rad.tolist() == [0.5, -0.5, 0.25]
    assert delta.gripper_opening == 0.75
    assert np.allclose(to_policy_units(delta, spec), action, atol=1e-15)
    hold = to_policy_units(EndEffectorDelta(np.zeros(3), np.zeros(3), 1.0), spec)
    assert hold.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_action_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r'shape \(6,\); expected \(7,\)'):
        from_policy_units(np.zeros(6), load_contract('libero').action)
