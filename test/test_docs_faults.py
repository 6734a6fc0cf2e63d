"""Every promise of docs/reference/faults.md has its test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r'`(test_[a-z_]+\.py)::([a-z0-9_]+)`')


def test_every_promise_names_a_test_that_exists():
    page = (ROOT / 'docs' / 'reference' / 'faults.md').read_text()
    rows = [line for line in page.splitlines() if line.startswith('| ')]
    promises = [line for line in rows if not line.startswith('| fault |')]
    assert len(promises) >= 40
    for line in promises:
        named = NAMED.findall(line)
        assert named, f'no test in: {line}'
        for file, name in named:
            text = (ROOT / 'test' / file).read_text()
            assert f'def test_{name}(' in text, f'{file} has no test_{name}'
