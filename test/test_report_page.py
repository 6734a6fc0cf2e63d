"""The report of a run: one file, honest about its numbers, whatever the run folder lacks."""

import base64
import io
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image
from report_runs import write_evaluation, write_run

from grape_trainer.evaluation import wilson_interval
from grape_trainer.report import build_report
from grape_trainer.report_reading import episodes_to_resolve
from grape_trainer.report_run import ReportError


@pytest.fixture(scope='module')
def complete(tmp_path_factory):
    """Return a complete run folder; tests that change it take a copy."""
    return write_run(tmp_path_factory.mktemp('report') / 'complete', rounds=2, errors=1)


@pytest.fixture
def run(complete, tmp_path):
    """Return a copy of a complete run folder."""
    return shutil.copytree(complete, tmp_path / 'run')


def page_of(run):
    return build_report(run).read_text(encoding='utf-8')


def text_of(page):
    """Return what a person reads: no tags, no style, one space."""
    page = re.sub(r'<(style|script|svg).*?</\1>', ' ', page, flags=re.DOTALL)
    return ' '.join(re.sub(r'<[^>]+>', ' ', page).replace('\N{NO-BREAK SPACE}', ' ').split())


def test_complete_run_has_every_part_and_no_note(complete):
    page = page_of(complete)
    words = text_of(page)
    assert 'Not on this page' not in words
    for part in ('after round 2', 'trial-0-0', 'log R_ext', 'McNemar', 'seed: 7', 'cost grasp'):
        assert part in words
    assert page.count('class="plot"') == 1 + 1 + 1 + 2  # success, terms, curves, two trials


def test_headline_shows_n_and_the_wilson_interval_without_the_errors(complete):
    low, high = (round(100 * bound) for bound in wilson_interval(8, 20))
    words = text_of(page_of(complete))
    assert f'base policy 40 % n 20, 95 % interval {low} % to {high} %' in words
    assert 'counted apart: errors 2, interrupted 0' in words


@pytest.mark.parametrize(
    ('base', 'after', 'says', 'says_not'),
    [
        (4, 6, 'within the noise at this n (20 and 20 episodes)', 'more than noise'),
        (1, 9, 'do not overlap: more than noise', 'within the noise'),
        (4, 7, 'the paired test finds a difference', 'within the noise'),
    ],
)
def test_difference_is_called_noise_only_where_it_is(run, base, after, says, says_not):
    write_evaluation(run / 'base', base, 10, 'base')
    for number in (1, 2):
        write_evaluation(run / f'round_{number}', after, 10, 'tpo')
    words = text_of(page_of(run))
    assert says in words
    assert says_not not in words


def test_episodes_needed_are_those_of_the_textbook():
    # Fleiss, 40 % against 60 % at 5 % and 80 % power without continuity correction: 95.
    assert abs(episodes_to_resolve(0.4, 0.6) - 95) <= 1
    assert episodes_to_resolve(0.5, 0.5) is None


def test_page_loads_nothing_and_is_small(complete):
    page = page_of(complete)
    loaded = re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', page)
    targets = [one or other for one, other in loaded]
    assert targets and all(target.startswith(('data:', '#')) for target in targets)
    assert '<link' not in page and '@import' not in page
    assert len(page) < 8e6


def test_every_picture_has_a_text_alternative(complete):
    page = page_of(complete)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r'<img[^>]*>', page))
    assert all('aria-label="' in tag for tag in re.findall(r'<svg[^>]*>', page))


def test_frames_are_upright_and_the_gif_moves(complete):
    page = page_of(complete)
    gif = re.search(r'data:image/gif;base64,([^"]+)', page)[1]
    film = Image.open(io.BytesIO(base64.b64decode(gif)))
    assert 20 < film.n_frames <= 40  # alike frames are merged
    assert film.convert('RGB').getpixel((1, film.height - 1))[0] > 100  # the table is below
    assert film.convert('RGB').getpixel((1, 1))[0] < 60


FILES = (
    'config.yaml',
    'state.json',
    'base/eval.json',
    'round_1/eval.json',
    'round_1/scores.csv',
    'round_1/pairs.json',
    'round_1/tpo/metrics.jsonl',
)


@pytest.mark.parametrize('name', FILES)
def test_missing_file_is_named_on_the_page(run, name):
    (run / name).unlink()
    assert f'Not on this page {name} :' in text_of(page_of(run))


def test_broken_files_are_named_on_the_page(run):
    for name in FILES:
        (run / name).write_bytes(b'{"half a fi\xff')
    words = text_of(page_of(run))
    assert all(f'{name} :' in words for name in FILES)


def test_round_0_without_trials_is_the_base_policy(run):
    (run / 'base').rename(run / 'round_0')
    words = text_of(page_of(run))
    assert 'base policy 40 %' in words
    assert 'Not on this page' not in words


def test_run_that_was_stopped_after_collecting_has_a_page(run):
    shutil.rmtree(run / 'round_2')
    for name in ('scores.csv', 'pairs.json', 'eval.json', 'tpo/metrics.jsonl'):
        (run / 'round_1' / name).unlink()
    state = {'phases': {'round_1/collect': {'started_at': '2026-01-01T08:00:00+00:00'}}}
    (run / 'state.json').write_text(json.dumps(state))
    words = text_of(page_of(run))
    assert 'No scored trial was found' in words
    assert 'unfinished' in words


@pytest.mark.parametrize('content', [None, 'notes.txt'])
def test_folder_without_a_run_is_a_clear_error(tmp_path, content):
    folder = tmp_path / 'empty'
    if content:
        folder.mkdir()
        (folder / content).touch()
    with pytest.raises(ReportError, match='grape iterate'):
        build_report(folder)


def test_moved_run_folder_still_shows_its_trials(complete, tmp_path):
    moved = shutil.copytree(complete, tmp_path / 'elsewhere')
    scores = moved / 'round_1' / 'scores.csv'
    scores.write_text(scores.read_text().replace('bags/', '/gone/'))
    assert 'A success' in text_of(page_of(moved))


def test_unreadable_bags_give_a_note_and_no_crash(run):
    for bag in run.glob('round_*/bags/*/*.mcap'):
        bag.write_bytes(bag.read_bytes()[:200])
    words = text_of(page_of(run))
    assert 'No trial could be shown' in words
    assert 'cannot be shown' in words


def test_trials_that_ended_in_an_error_are_listed_apart(run):
    scores = run / 'round_1' / 'scores.csv'
    head, first, *rest = scores.read_text().splitlines()
    known = dict(zip(head.split(','), first.split(','), strict=True))
    kept = {name: known[name] for name in ('bag', 'episode_id', 'task', 'init_state')}
    ended = {'outcome': 'error', 'status': 'error', 'detail': 'no PolicyStep within 30 s'}
    cells = dict.fromkeys(known, '') | kept | ended
    scores.write_text('\n'.join([head, ','.join(cells.values()), *rest]) + '\n')
    assert 'trial-0-0 : error, no PolicyStep within 30 s' in text_of(page_of(run))


def test_text_from_a_bag_cannot_become_markup(tmp_path):
    run = write_run(tmp_path / 'run', instruction='<script>alert(1)</script>')
    page = page_of(run)
    assert '<script>alert' not in page
    assert '&lt;script&gt;alert' in page


def test_two_reports_of_one_run_differ_only_in_the_date(complete):
    pages = [re.sub(r'Page made [^<]*', '', page_of(complete)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_table_can_be_sorted_in_a_browser(complete, tmp_path):
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if browser is None:
        pytest.skip('no Chromium: apt-get install -y chromium')
    path = build_report(complete)
    click = (
        "<script>[...document.querySelectorAll('#terms th button')]"
        ".find((b) => b.textContent === 'R_GCPG').click()</script></body>"
    )
    copy = tmp_path / 'clicked.html'
    copy.write_text(path.read_text().replace('</body>', click))
    command = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
        '--no-first-run', '--disable-background-networking', '--disable-component-update',
        '--disable-sync', f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', copy.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    table = dom[dom.index('aria-label="Table of trials"') : dom.index('id="pairs"')]
    assert 'aria-sort="ascending"' in table
    rows = re.findall(r'<tr><td>.*?</tr>', table, flags=re.DOTALL)
    outcomes = [re.search(r'class="text (\w+)"', row)[1] for row in rows]
    assert outcomes == ['failure'] * 4 + ['success'] * 4
