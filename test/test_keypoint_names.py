"""Which thing is which is said for one initial state or for all, and is part of a score."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scoring_trials import make_trial

from grape_trainer.scoring.keypoint import KeypointError
from grape_trainer.scoring.keypoint_names import make_source
from grape_trainer.scoring.keypoint_proposal import Proposal
from grape_trainer.scoring.objective import ObjectiveError, load_objective
from grape_trainer.scoring.objective_sections import KeypointSettings
from grape_trainer.scoring.score_setup import prepare

PICTURE = np.zeros((10, 10, 3), np.uint8)
SEEN = tuple(
    Proposal(np.zeros((10, 10), bool), np.array([[u, v]])) for u, v in ((1, 2), (3, 4), (5, 6))
)


def named(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_a_folder_has_a_file_for_each_initial_state(tmp_path):
    named(tmp_path, 'libero_object_0-i03.json', {'milk_1': [7, 8]})
    source = make_source(KeypointSettings(source='clicks', clicks=tmp_path))
    trial = make_trial(init_state=3)
    assert source.choose(trial, PICTURE, SEEN) == {'milk_1': (7.0, 8.0)}
    other = make_trial(init_state=12)
    with pytest.raises(KeypointError, match=r"no 'libero_object_0-i12.json'.*it has: libero_obj"):
        source.choose(other, PICTURE, SEEN)


def test_numbers_are_those_of_the_numbered_picture(tmp_path):
    file = named(tmp_path, 'all.json', {'milk_1': 2, 'basket_1': 3})
    source = make_source(KeypointSettings(source='perceived', numbers=file))
    found = source.choose(replace(make_trial()), PICTURE, SEEN)
    assert found == {'milk_1': (3.0, 4.0), 'basket_1': (5.0, 6.0)}
    for wrong in ({'milk_1': 0}, {'milk_1': [1, 2]}, {'milk_1': True}, {}, [1]):
        file.write_text(json.dumps(wrong))
        with pytest.raises(KeypointError, match='expected an object of name -> number'):
            make_source(KeypointSettings(source='perceived', numbers=file))


def test_what_was_said_is_part_of_the_configuration_and_where_it_lies_is_not(tmp_path):
    def sha256(folder, u):
        file = named(tmp_path / folder, 'all.json', {'milk_1': [u, 8]})
        looking = load_objective('completion').with_keypoints(source='clicks', clicks=file)
        return prepare(looking).config_sha256

    assert sha256('here', 7) == sha256('there', 7) != sha256('here', 9)
    assert sha256('here', 7) != prepare(load_objective('completion')).config_sha256


def test_options_that_do_not_fit_together_are_refused(tmp_path):
    for settings in (
        {'source': 'clicks'},
        {'source': 'perceived', 'clicks': 'clicks.json'},
        {'source': 'scene', 'clicks': 'clicks.json'},
        {'source': 'clicks', 'clicks': 'clicks.json', 'proposer': 'segment_anything'},
        {'source': 'camera'},
    ):
        with pytest.raises(ObjectiveError, match='keypoints'):
            load_objective('completion').with_keypoints(**settings)
