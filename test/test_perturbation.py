"""Perturbations without a simulator: names, seeds, geometry, BDDL text, pictures, wording."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from grape_bringup.graph import EpisodeRequest
from grape_bringup.manifest import Manifest, ManifestError
from grape_bringup.rollouts import episode_name
from grape_episode.outcome import Outcome
from grape_episode.task_name import base_task
from grape_trainer.evaluation import InitStateError, assert_disjoint
from sim_bridge.libero_objects import add_objects, choose_objects, upright_quaternion
from sim_bridge.perturbation import (
    KINDS,
    Distractors,
    LayoutShift,
    Obstacle,
    PerturbationError,
    join_task,
    parse_perturbation,
    split_task,
)
from sim_bridge.perturbation_layout import Box, distance_to_path, find_offset, near_path
from sim_bridge.perturbation_senses import TEMPLATES, noisy, said_otherwise

BDDL = """(define (problem LIBERO_Floor_Manipulation)
  (:objects
    soup_1 - alphabet_soup
    milk_1 milk_2 - milk
  )
  (:init
    (On soup_1 floor_region)
  )
)"""


def test_a_perturbed_task_has_one_name_however_it_is_asked_for():
    asked = 'libero_object/0+obstacle:count=1+layout_shift:seed=3,min_m=0.10'
    base, perturbations = split_task(asked)
    assert base == base_task(asked) == 'libero_object/0'
    assert perturbations == (LayoutShift(min_m=0.1, seed=3), Obstacle())
    name = join_task(base, perturbations)
    assert name == 'libero_object/0+layout_shift:seed=3,min_m=0.1+obstacle'
    assert split_task(name) == (base, perturbations)
    assert split_task('libero_object/0') == ('libero_object/0', ())


def test_every_perturbation_is_read_back_from_its_text_and_recorded_with_its_seed():
    for name, kind in KINDS.items():
        one = kind(seed=5)
        assert parse_perturbation(str(one)) == one and str(kind()) == name
        assert one.record()['name'] == name and one.record()['seed'] == 5
    assert Obstacle(mass_kg=2.0).record()['parameters'] == {
        'count': 1, 'kind': 'any', 'path': 'carry', 'along_min': 0.25, 'along_max': 0.75,
        'aside_m': 0.04, 'mass_kg': 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('fog', "Unknown perturbation 'fog'; there are: layout_shift, obstacle, distractors"),
        ('', "Unknown perturbation ''"),
        ('obstacle:hight=2', "cannot take 'hight=2'.*count=1, kind=any"),
        ('obstacle:count', "cannot take 'count'"),
        ('obstacle:count=1,count=2', "cannot take 'count=2'"),
        ('obstacle:count=two', "count='two'; expected int"),
        ('obstacle:count=3', r'expected count=1\|2'),
        ('obstacle:mass_kg=nan', "mass_kg='nan'; expected float"),
        ('obstacle:kind=', "kind=''; expected str"),
        ('layout_shift:min_m=0.2', '0 < min_m <= max_m'),
        ('layout_shift:seed=-1', 'a whole number, 0 or more'),
        ('image_noise:strength=loud', r'strength=weak\|strong'),
    ],
)
def test_what_does_not_exist_is_named_with_the_choices(text, said):
    with pytest.raises(PerturbationError, match=said):
        parse_perturbation(text)


def test_the_same_perturbation_twice_is_an_error():
    with pytest.raises(PerturbationError, match='obstacle twice'):
        split_task('libero_object/0+obstacle+obstacle:seed=1')


def test_draws_depend_on_name_seed_and_initial_state_and_on_nothing_else():
    def draw(one, *of):
        return one.generator(*of).random()

    assert draw(LayoutShift(), 4) == draw(LayoutShift(max_m=0.3), 4)
    others = {draw(LayoutShift(), 5), draw(LayoutShift(seed=1), 4), draw(Obstacle(), 4)}
    assert len(others | {draw(LayoutShift(), 4)}) == 4


def test_the_gap_between_boxes_is_worked_out_by_hand():
    box = Box(np.array([0.0, 0.0]), np.array([2.0, 1.0]))
    assert box.gap_m(box.moved(np.array([5.0, 5.0]))) == pytest.approx(5.0)  # 3 and 4
    assert box.gap_m(box.moved(np.array([0.0, 1.5]))) == pytest.approx(0.5)
    assert box.gap_m(box.moved(np.array([1.9, 0.9]))) == 0.0
    assert box.holds(Box(np.array([0.0, 0.5]), np.array([2.0, 1.0])))
    assert not box.holds(box.moved(np.array([0.1, 0.0])))


def test_the_first_proposal_that_fits_is_taken_and_none_where_nothing_does():
    cup = Box(np.array([-0.05, -0.05]), np.array([0.05, 0.05]))
    area = Box(np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    other = Box(np.array([0.4, 0.4]), np.array([0.6, 0.6]))
    proposals = iter([(0.02, 0.5), None, (0.5, 0.5), (0.5, 0.67), (0.5, 0.69), (0.1, 0.1)])

    def propose():
        place = next(proposals)
        return None if place is None else np.array(place)

    found = find_offset([cup], propose, [other], area, gap_m=0.03)
    assert found.tolist() == [0.5, 0.69]  # 0.04 away; 0.67 is 0.02 away
    assert find_offset([cup], lambda: np.array([0.5, 0.5]), [other], area, 0.01) is None


def test_points_near_a_path_stay_within_their_bounds():
    start, end = np.array([0.0, 0.0]), np.array([0.0, 2.0])
    rng = np.random.default_rng(0)
    points = np.array([near_path(rng, start, end, (0.25, 0.75), 0.1) for _ in range(200)])
    assert (np.abs(points[:, 0]) <= 0.1).all() and np.ptp(points[:, 0]) > 0.15
    assert points[:, 1].min() >= 0.5 and points[:, 1].max() <= 1.5 and np.ptp(points[:, 1]) > 0.8
    assert distance_to_path(np.array([3.0, 1.0]), start, end) == pytest.approx(3.0)
    assert distance_to_path(np.array([3.0, 6.0]), start, end) == pytest.approx(5.0)  # from the end


def test_added_objects_are_models_that_the_task_does_not_have():
    for seed in range(20):
        added = choose_objects(BDDL, [Obstacle(count=2, seed=seed), Distractors(count=3)])
        assert Counter(name.split('_')[0] for name in added) == {'obstacle': 2, 'distractor': 3}
        assert not set(added.values()) & {'alphabet_soup', 'milk'}
        assert len(set(added.values())) == 5
    text = add_objects(BDDL, {'obstacle_wine_bottle': 'wine_bottle'})
    assert '(:objects\n    obstacle_wine_bottle - wine_bottle\n' in text
    assert text.replace('\n    obstacle_wine_bottle - wine_bottle', '', 1) == BDDL
    for kind, said in (('milk', 'is in the task already'), ('piano', 'is no obstacle')):
        with pytest.raises(PerturbationError, match=f'{kind} {said}; choose one of: wine_bottle'):
            choose_objects(BDDL, [Obstacle(kind=kind)])


def test_an_object_stands_as_libero_says_and_then_turns():
    """A quarter turn about x stands y up; the yaw leaves that axis vertical."""
    standing = SimpleNamespace(rotation=(np.pi / 2, np.pi / 2), rotation_axis='x')
    half = np.sqrt(0.5)
    np.testing.assert_allclose(upright_quaternion(standing, 0.0), [half, half, 0, 0], atol=1e-12)
    both = SimpleNamespace(rotation={'x': (0, np.pi / 2), 'z': (0, np.pi / 2)}, rotation_axis=None)
    expected = np.abs(upright_quaternion(standing, np.pi / 2))
    np.testing.assert_allclose(np.abs(upright_quaternion(both, 0.0)), expected, atol=1e-12)


def test_noise_is_as_strong_as_it_says_and_never_wraps_round():
    grey, white = (np.full((64, 64, 3), value, np.uint8) for value in (128, 255))
    for strength, std in (('weak', 12.0), ('strong', 40.0)):
        seen = noisy(grey, strength, np.random.default_rng(0))
        assert seen.dtype == np.uint8 and np.std(seen.astype(float)) == pytest.approx(
            std, rel=0.05
        )
    assert noisy(white, 'weak', np.random.default_rng(0)).min() > 180


def test_sixteen_templates_keep_the_instruction_whole():
    said = {said_otherwise('open the drawer', i, np.random.default_rng(0)) for i in range(16)}
    assert len(TEMPLATES) == len(said) == 16
    assert all('open the drawer' in text and text == text.lower() for text in said)
    drawn = {said_otherwise('x', -1, np.random.default_rng(i)) for i in range(100)}
    assert len(drawn) > 12


def test_a_bags_name_holds_the_perturbation_and_no_character_that_shells_mind():
    task = 'libero_object/0+obstacle:count=2,mass_kg=1.5'
    name = episode_name(0, task, 3, 1)
    assert name == 'libero_object_0+obstacle_count_2_mass_kg_1.5-i03-t1-s0'


def test_the_manifest_tells_a_perturbed_episode_from_another(tmp_path):
    """Even under the same name: the request is part of an episode's identity."""
    asked = EpisodeRequest('same', 'libero_object/0+obstacle', 3, 0)
    Manifest(tmp_path, {}).add(asked, Outcome.SUCCESS, 10, None, '')
    assert Manifest(tmp_path, {}).find(asked).asked['task'] == 'libero_object/0+obstacle'
    with pytest.raises(ManifestError, match=r'task: libero_object/0\+obstacle there'):
        Manifest(tmp_path, {}).find(EpisodeRequest('same', 'libero_object/0', 3, 0))


def test_perturbing_a_trained_initial_state_does_not_make_it_held_out():
    with pytest.raises(InitStateError, match=r'libero_object/0\+obstacle state 3'):
        assert_disjoint([('libero_object/0', 3)], [('libero_object/0+obstacle', 3)])
    with pytest.raises(InitStateError, match='libero_object/0 state 3'):
        assert_disjoint([('libero_object/0+layout_shift', 3)], [('libero_object/0', 3)])
    assert_disjoint([('libero_object/0', 3)], [('libero_object/0+obstacle', 4)])
