#!/usr/bin/env bash
# Build the tests' interface packages into build/test_interfaces and say where they are. Builds
# only when their files changed.
# usage: test/interfaces/build.sh [VENV]      (default .venv)
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(realpath "${1:-.venv}")
prefix=$PWD/build/test_interfaces
stamp=$prefix/interfaces.sha256
key=$(find test/interfaces -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -d' ' -f1)
mkdir -p build
# Two test runs at once: the second waits, and finds it done.
exec 9>build/test_interfaces.lock
flock 9
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
  echo "$prefix"
  exit 0
fi

# As in tools/build_interfaces.sh.
unset PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
LD_LIBRARY_PATH=$("$venv/bin/python" -c 'import os; print(os.environ["LD_LIBRARY_PATH"])')
export LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv PATH=$venv/bin:$PATH
export STATIC_ROSIDL_TYPESUPPORT_C=rosidl_typesupport_fastrtps_c
build=$(mktemp -d build/test_interfaces_cmake.XXXXXX)
log=build/test_interfaces.log
trap 'rm -rf "$build"' EXIT
rm -rf "$prefix"
# The rpath: who imports them has started with a library path of before.
if ! {
  cmake -S test/interfaces -B "$build" -DCMAKE_INSTALL_PREFIX="$prefix" \
    -DCMAKE_INSTALL_RPATH="$prefix/lib" -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON \
    -DCMAKE_BUILD_TYPE=Debug -DPython3_EXECUTABLE="$venv/bin/python" -DBUILD_TESTING=OFF &&
    cmake --build "$build" -j"$(nproc)" &&
    cmake --install "$build"
} >"$log" 2>&1; then
  tail -30 "$log" >&2
  echo "error: the tests' interfaces did not build; the whole log is in $log" >&2
  exit 1
fi
echo "$key" >"$stamp"
echo "$prefix"
