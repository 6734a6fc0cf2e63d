"""A recorder that is killed loses at most the last chunk; `recover` brings back the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from episode_bags import CONTRACT, make_bag, make_episode, rewrite
from mcap.reader import make_reader
from mcap.records import Channel, Metadata
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import Reader

from grape_episode.bag import BagError, read_episode, read_info, recover
from grape_episode.bag_writer import BagWriter
from grape_episode.outcome import Outcome

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dataclasses import replace
from episode_bags import make_bag, CONTRACT
from grape_episode.bag import read_info
from grape_episode.bag_writer import BagWriter
from grape_episode.outcome import Outcome
from rosbags.rosbag2 import Reader
bag = make_bag(Path(sys.argv[2]) / 'source', 'e0', 40)
info = replace(read_info(bag), outcome=Outcome.INTERRUPTED, steps=0, adapter_id='', policy={})
with Reader(bag) as reader:
    messages = [(c.topic, at, data) for c, at, data in reader.messages()]
writer = BagWriter(Path(sys.argv[2]) / 'e0', CONTRACT.topics, info, 'zstd')
for count, (topic, at, data) in enumerate(messages):
    if topic.startswith('camera'):
        time.sleep(0.02)
    writer.write(topic, at, data)
    print(count + 1, flush=True)
time.sleep(60)
"""


@pytest.fixture
def killed(tmp_path):
    """Return a bag whose writer was killed, and how many messages were written a chunk ago."""
    process = subprocess.Popen(
        [sys.executable, '-c', WRITER, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    times = []
    for _ in process.stdout:
        times.append(time.monotonic())
        if len(times) == 150:  # of 206
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    settled = sum(at < times[-1] - 0.35 for at in times)
    return tmp_path / 'e0', settled


def test_killed_writer_loses_at_most_one_chunk(killed):
    bag, settled = killed
    with pytest.raises(BagError, match=f'grape bag recover {bag}'):
        read_episode(bag)
    saved = recover(bag)
    assert saved >= settled > 50
    episode = read_episode(bag)
    assert episode.info.outcome is Outcome.INTERRUPTED
    assert len(episode.stamps_ns) == episode.info.steps > 10
    assert episode.info.adapter_id == 'sft-01234567'
    assert episode.info.policy == {'policy_sha256': 'abc'}
    assert 'recovered' in episode.info.detail
    assert (bag / 'e0.mcap.damaged').is_file()
    source = read_episode(bag.parent / 'source' / 'e0')
    steps = episode.info.steps
    assert (episode.action_token_ids == source.action_token_ids[:steps]).all()
    assert (episode.images['agentview'] == source.images['agentview'][:steps]).all()


def test_bag_that_lost_only_its_metadata_keeps_its_outcome(tmp_path):
    bag = make_bag(tmp_path)
    before = read_episode(bag)
    (bag / 'metadata.yaml').unlink()
    os.truncate(bag / 'e0.mcap', (bag / 'e0.mcap').stat().st_size - 40)
    assert recover(bag) == 38
    after = read_episode(bag)
    assert (after.images['agentview'] == before.images['agentview']).all()
    assert after.info.outcome is Outcome.SUCCESS
    assert after.info.lost == {}


def test_corrupted_chunk_is_left_out_and_the_others_are_saved(tmp_path):
    bag = make_bag(tmp_path, steps=2000)  # several chunks of 1 MB
    sound = (bag / 'e0.mcap').read_bytes()
    place = len(sound) // 2
    (bag / 'e0.mcap').write_bytes(sound[:place] + bytes(64) + sound[place + 64 :])
    saved = recover(bag)
    assert 4000 < saved < 10006
    info = read_info(bag)
    assert info.lost['camera/agentview/image_raw'] > 0
    assert 'a chunk before byte' in info.detail
    with pytest.raises(BagError, match='has no message for step'):
        read_episode(bag)


def test_complete_bag_is_left_alone(tmp_path):
    bag = make_bag(tmp_path)
    before = {item.name: item.read_bytes() for item in bag.iterdir()}
    with pytest.raises(BagError, match='is complete'):
        recover(bag)
    assert {item.name: item.read_bytes() for item in bag.iterdir()} == before


def test_bag_without_a_readable_message_is_left_as_it_is(tmp_path):
    bag = make_bag(tmp_path)
    os.truncate(bag / 'e0.mcap', 100)
    with pytest.raises(BagError, match='no message can be saved.*Nothing was changed'):
        recover(bag)
    assert sorted(item.name for item in tmp_path.iterdir()) == ['e0']
    assert (bag / 'e0.mcap').stat().st_size == 100


def test_renamed_bag_is_recovered_under_its_new_name(tmp_path):
    bag = rewrite(make_bag(tmp_path), lambda topic, message: [message])
    (bag / 'metadata.yaml').unlink()
    bag = bag.rename(tmp_path / 'other')
    recover(bag)
    assert read_episode(bag).info.episode_id == 'e0'


def test_file_of_a_recorder_killed_at_once_says_what_it_was_to_be(tmp_path):
    """Before the first chunk nothing can be saved, but whose file it is can be read."""
    info = make_episode('e0').info
    writer = BagWriter(tmp_path / 'e0', CONTRACT.topics, info, 'zstd')
    with (writer.folder / 'e0.mcap').open('rb') as stream:
        records = StreamReader(stream).records
        found = [next(records) for _ in range(12)]
    about = next(r for r in found if isinstance(r, Metadata))
    assert json.loads(about.metadata['episode.json'])['episode_id'] == 'e0'
    assert any(isinstance(record, Channel) for record in found)
    writer.close(info)
    assert read_info(tmp_path / 'e0') == info


@pytest.mark.parametrize('limit', [4096, 65536])
def test_chunks_are_bounded_by_their_size(tmp_path, limit):
    source, info = make_bag(tmp_path / 'source', steps=40), make_episode('e0', 40).info
    writer = BagWriter(tmp_path / 'e0', CONTRACT.topics, info, 'none', chunk_bytes=limit)
    longest = 0
    with Reader(source) as reader:
        for connection, at, cdr in reader.messages():
            writer.write(connection.topic, at, cdr)
            longest = max(longest, len(cdr))
    writer.close(info)
    with (tmp_path / 'e0' / 'e0.mcap').open('rb') as stream:
        chunks = make_reader(stream).get_summary().chunk_indexes
    assert len(chunks) > 1
    assert max(chunk.uncompressed_size for chunk in chunks) <= limit + longest + 64
    assert len(read_episode(tmp_path / 'e0').stamps_ns) == 40
