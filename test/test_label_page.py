"""The labelling page in a real Chromium: keys, films, other people, and who is let in."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import count

import pytest
from chromium import Chromium, find_chromium
from episode_bags import make_bag
from graph_run import wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from grape_bringup.label_page.access import Access
from grape_episode.label import append_label, read_labels, standing
from grape_episode.outcome import Outcome
from grape_trainer.scoring.score_table import ScoreRow, write_scores

PORTS = count(18321)
EPISODES = 30
A_MINUTE = 20  # labels, the promise
# The pictures are there, and the server knows it.
JUDGEABLE = "document.querySelector('#button-success').disabled === false"

pytestmark = pytest.mark.skipif(find_chromium() is None, reason='chromium is not installed')


def record(folder, number, **options):
    name = f'trial_{number:02d}'
    at = f'2026-01-01T10:{number:02d}:00+00:00'
    options = {'outcome': Outcome.INTERRUPTED, 'started_at': at} | options
    return make_bag(folder, name, steps=8, **options)


def without_pytest():
    """Return the environment; NiceGUI runs in another way where it finds pytest in it."""
    return {name: value for name, value in os.environ.items() if name != 'PYTEST_CURRENT_TEST'}


class Server:
    """`grape label` as a process."""

    def __init__(self, folder, log, *options):
        self.port = next(PORTS)
        self.url = f'http://127.0.0.1:{self.port}'
        self.log = log
        with log.open('wb') as output:
            self.process = subprocess.Popen(
                [
                    sys.executable, '-m', 'grape_bringup.cli', 'label', str(folder),
                    '--port', str(self.port), '--labeller', 'ada', *options,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=without_pytest(),
            )  # fmt: skip
        wait_until(self._answers)

    def _answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            urllib.request.urlopen(f'{self.url}/label/player.js', timeout=5).read()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        assert 'Traceback' not in self.log.read_text(), self.log.read_text()


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('label') / 'bags'
    for number in range(EPISODES):
        record(folder, number)
    simulated = make_bag(folder, 'simulated', steps=8)  # judged by the simulator
    costs = {'grasp': 0.25, 'place': 1.5}
    rows = [
        ScoreRow(bag.resolve(), stage_costs=costs, r_gcpg=0.7, objective='completion')
        for bag in (folder / 'trial_00', simulated)
    ]
    write_scores(folder.parent / 'scores.csv', rows, list(costs))
    return folder


@pytest.fixture(scope='module')
def server(bags):
    server = Server(bags, bags.parent / 'server.log')
    yield server
    server.stop()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with Chromium(find_chromium(), tmp_path_factory.mktemp('chrome')) as browser:
        yield browser


@pytest.fixture
def page(server, browser):
    """The page, on the first episode that waits, with its pictures."""
    browser.open(server.url)
    browser.wait_for(JUDGEABLE)
    return browser


def shown(page):
    """Return the name of the episode on show."""
    return page.evaluate("document.querySelector('#title').innerText").split(':')[0]


def shows(page, name):
    page.wait_for(f"document.querySelector('#title').innerText.startsWith('{name}:')")
    page.wait_for(JUDGEABLE)


def test_queue_shows_the_unlabelled_first_and_what_scoring_found(page):
    assert shown(page) == 'trial_00'
    assert page.text().index('trial_29') < page.text().index('simulated')
    page.wait_text('cost of place: 1.5')
    page.wait_text('R_GCPG 0.7 (completion)')


def test_film_plays_at_its_speed_scrubs_and_fetches_the_next_one(page):
    page.wait_for('grapePlayer.state().cached.includes("/film/1")')
    page.wait_for('!grapePlayer.state().playing')  # to its end: 0.35 s
    assert page.evaluate('grapePlayer.state().frame') == 7
    page.key('ArrowUp')
    assert page.evaluate('grapePlayer.state().speed') == 2
    page.key(' ')
    page.wait_for('grapePlayer.state().frame > 2 && !grapePlayer.state().playing')
    page.evaluate(
        "(() => { const bar = document.getElementById('film-scrub'); bar.value = 3;"
        "bar.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    page.key('ArrowRight')
    assert page.evaluate('grapePlayer.state().frame') == 4
    colours = page.evaluate(
        "new Set(document.getElementById('film').getContext('2d')"
        '.getImageData(0, 0, 28, 28).data).size'
    )
    assert colours > 50  # a picture, not an empty canvas


def test_twenty_labels_a_minute_by_keys_alone(page, bags):
    began = time.monotonic()
    for number in range(20):
        shows(page, f'trial_{number:02d}')
        page.key('sfd'[number % 3])
        page.wait_for(
            f"!document.querySelector('#title').innerText.startsWith('trial_{number:02d}:')"
        )
    took_s = time.monotonic() - began
    assert 20 / took_s * 60 >= A_MINUTE, f'{took_s:.1f} s for 20 labels'
    said = [standing(read_labels(bags / f'trial_{n:02d}')) for n in range(20)]
    assert [label.outcome[0] for label in said] == [*'sfd' * 6, 's', 'f']
    assert {label.labeller for label in said} == {'ada'}
    assert '10 of 31 wait' in page.text()


def test_undo_takes_the_last_label_back_and_returns_to_its_episode(page, bags):
    name = shown(page)
    page.key('s')
    page.wait_for(f"!document.querySelector('#title').innerText.startsWith('{name}:')")
    page.key('u')
    shows(page, name)
    assert [label.outcome for label in read_labels(bags / name)] == ['success', 'undo']
    page.wait_text('takes back success')
    page.key('f')
    page.wait_for(f"!document.querySelector('#title').innerText.startsWith('{name}:')")
    assert standing(read_labels(bags / name)).outcome == 'failure'


def test_note_score_and_stage_go_with_the_verdict_and_typing_labels_nothing(page, bags):
    name = shown(page)
    page.key('n')
    page.wait_for("document.activeElement.tagName === 'INPUT'")
    page.type('dropped it, sadly')
    page.key('s')  # is text
    page.key('Enter')
    page.wait_for("document.activeElement.tagName !== 'INPUT'")
    assert read_labels(bags / name) == []
    page.evaluate("document.querySelector('#score').focus()")
    page.type('4')
    page.evaluate("document.querySelector('#stage').focus()")
    page.type('grasp')
    page.evaluate('document.activeElement.blur()')
    time.sleep(0.3)  # the fields' values reach the server with their last event
    page.key('f')
    page.wait_for(f"!document.querySelector('#title').innerText.startsWith('{name}:')")
    [label] = read_labels(bags / name)
    assert label.reason == 'dropped it, sadlys' and (label.score, label.stage) == (4, 'grasp')


def test_page_closed_in_the_middle_of_labelling_loses_nothing(page, server, bags):
    name = shown(page)
    page.key('s')
    wait_until(lambda: read_labels(bags / name))
    page.close_page()
    page.new_page()
    page.open(server.url)
    page.wait_for(JUDGEABLE)
    assert shown(page) != name
    assert [label.outcome for label in read_labels(bags / name)] == ['success']


def test_two_labellers_are_told_of_one_another_and_both_verdicts_stay(page, bags):
    name = shown(page)
    append_label(bags / name, 'failure', labeller='bob')
    page.key('s')
    page.wait_text('bob said failure meanwhile')
    assert [x.labeller for x in read_labels(bags / name)] == ['bob']
    page.key('s')
    page.wait_for(f"!document.querySelector('#title').innerText.startsWith('{name}:')")
    assert [x.labeller for x in read_labels(bags / name)] == ['bob', 'ada']
    append_label(bags / name, 'discard', labeller='bob')
    page.key('u')
    page.wait_text('after you said success')
    assert standing(read_labels(bags / name)).outcome == 'discard'


def test_episode_without_pictures_says_so_and_can_be_discarded(page, server, bags):
    bag = record(bags, 40, started_at='2026-01-01T09:00:00+00:00')
    next(bag.glob('*.mcap')).write_bytes(b'\x89MCAP0\r\n')
    page.wait_text('trial_40', 20)  # found while the page is open
    page.evaluate(
        "[...document.querySelectorAll('.cursor-pointer')]"
        ".find(e => e.innerText.includes('trial_40')).click()"
    )
    page.wait_text('No pictures:')
    page.wait_for(JUDGEABLE)
    page.key('d')
    wait_until(lambda: read_labels(bag))
    assert standing(read_labels(bag)).outcome == 'discard'


def get(url, **headers):
    """Return status and text."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors='replace')
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_other_web_sites_do_not_reach_the_page(server):
    assert get(server.url)[0] == 200
    status, text = get(server.url, Host='evil.example')  # its name was pointed here
    assert status == 403 and 'evil.example' in text
    assert get(server.url, Origin='http://evil.example')[0] == 403
    address = f'ws://127.0.0.1:{server.port}/_nicegui_ws/socket.io/?EIO=4&transport=websocket'
    with pytest.raises(InvalidStatus):
        connect(address, origin='http://evil.example')


def test_other_addresses_ask_for_the_token(bags):
    server = Server(bags, bags.parent / 'open.log', '--host', '0.0.0.0')
    try:
        printed = wait_until(lambda: 'token=' in server.log.read_text() and server.log.read_text())
        token = printed.split('token=')[1].split()[0]
        assert get(server.url)[0] == 401
        assert get(f'{server.url}/film/0', Cookie='grape_token=guess')[0] == 401
        assert get(f'{server.url}/film/0', Cookie=f'grape_token={token}')[0] == 200
        status, text = get(f'{server.url}/?token=wrong')
        assert status == 401 and 'the URL that `grape label` printed' in text
    finally:
        server.stop()


def test_token_is_made_up_only_where_others_can_reach_the_page():
    assert Access.for_host('127.0.0.1').token == ''
    assert len(Access.for_host('192.168.0.4').token) > 16
    assert Access.for_host('192.168.0.4', 'mine').url('192.168.0.4', 80).endswith('?token=mine')


def test_missing_folder_is_an_error_that_says_what_to_give(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'grape_bringup.cli', 'label', str(tmp_path / 'none')],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and 'is no folder' in done.stderr
    assert 'Traceback' not in done.stderr
