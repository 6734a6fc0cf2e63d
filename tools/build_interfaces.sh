#!/usr/bin/env bash
# Generate, compile and install the package `grape` (grape.msg, grape.srv, grape.action) into a
# venv that holds the ROS 2 wheels. Builds only when the interface files or CMakeLists.txt changed.
# usage: tools/build_interfaces.sh [VENV]      (default .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
stamp=$venv/share/grape/interfaces.sha256
key=$(cat msg/*.msg srv/*.srv action/*.action CMakeLists.txt package.xml tools/build_interfaces.sh |
  sha256sum | cut -d' ' -f1)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
  echo 'grape interfaces: up to date'
  exit 0
fi

"$venv/bin/python" tools/mend_ros_wheels.py
# rosidl's generators are Python programs that CMake starts: they need the library path which the
# wheels' start-up hook gives to the first interpreter of a process tree, and nobody else.
unset PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
LD_LIBRARY_PATH=$("$venv/bin/python" -c 'import os; print(os.environ["LD_LIBRARY_PATH"])')
export LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv PATH=$venv/bin:$PATH

mkdir -p build
build=$(mktemp -d build/interfaces.XXXXXX)
log=build/interfaces.log
trap 'rm -rf "$build"' EXIT
if ! {
  cmake -S . -B "$build" -DCMAKE_INSTALL_PREFIX="$venv" -DCMAKE_BUILD_TYPE=Release \
    -DPython3_EXECUTABLE="$venv/bin/python" -DBUILD_TESTING=OFF -DGRAPE_INTERFACES_ONLY=ON &&
    cmake --build "$build" -j"$(nproc)" &&
    cmake --install "$build"
} >"$log" 2>&1; then
  tail -40 "$log" >&2
  echo "error: the grape interfaces did not build; the whole log is in $log" >&2
  exit 1
fi
echo "$key" >"$stamp"
echo 'grape interfaces: built'
