"""Hub ids: the local cache first, a clear word without network, and never a guess at a folder."""

import json

import huggingface_hub
import pytest
from policy_tiny import tiny_checkpoint

from grape_policy_node.engine import Engine
from grape_policy_node.openvla import hub
from grape_policy_node.openvla.checkpoint import CheckpointError, folder_sha256, save_checkpoint

COMMIT = 'a' * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache without network."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    return tmp_path / 'hub'


def put(cache, revision='main'):
    """Lay a policy into the cache, as a download does."""
    repo = cache / 'models--lab--tiny'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / revision).write_text(COMMIT)
    return save_checkpoint(tiny_checkpoint(), repo / 'snapshots' / COMMIT)


@pytest.mark.parametrize(('name', 'revision'), [('lab/tiny', 'main'), ('lab/tiny@v2', 'v2')])
def test_a_cached_policy_loads_without_network(cache, name, revision):
    folder = put(cache, revision)
    assert hub.resolve_folder(name) == folder
    assert Engine.load(name).policy_sha256 == folder_sha256(folder)


def test_a_policy_that_is_not_cached_says_what_to_do_without_network(cache):
    with pytest.raises(
        CheckpointError, match=r"revision 'v3' of 'lab/tiny'.*hf download lab/tiny"
    ):
        Engine.load('lab/tiny@v3')


def test_an_interrupted_download_is_gone_on_with(cache, monkeypatch):
    """A snapshot without all its shards is no policy: the rest is asked for."""
    folder = put(cache)
    index = {'weight_map': {'a': 'model-00001-of-00002.safetensors'}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    asked = []

    def download(repo, local_files_only=False, **options):
        asked.append((local_files_only, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert hub.resolve_folder('lab/tiny') == folder
    assert [local for local, _ in asked] == [True, False]
    assert 'tokenizer.model' in asked[1][1]['allow_patterns']


def test_a_folder_wins_over_a_hub_id_of_the_same_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tiny_checkpoint(), tmp_path / 'lab' / 'tiny')
    assert not hub.is_hub_id('lab/tiny') and hub.is_hub_id('lab/other')


@pytest.mark.parametrize('name', ['/data/policy', './lab/tiny', 'policy', 'runs/a/policy', '~/p'])
def test_a_path_is_never_looked_up_on_the_hub(name):
    assert not hub.is_hub_id(name)
