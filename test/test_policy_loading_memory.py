"""Loading never holds the weights twice: the peak is at most 1.1 times the weights."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / 'bench' / 'bench_load.py'
CASES = ('float32:float32', 'bfloat16:float32')


def test_the_peak_of_loading_is_the_weights_whatever_the_dtypes(tmp_path):
    """Mapped where the dtype stays, converted piece by piece where it changes."""
    out = tmp_path / 'load.json'
    command = [sys.executable, str(BENCH), '--mb', '120', '--out', str(out), '--case', *CASES]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    rows = json.loads(out.read_text())
    assert [f'{row["file"]}:{row["memory"]}' for row in rows] == list(CASES)
    for row in rows:
        assert row['weights_mb'] > 100 and row['peak_use'] <= 1.1, row
