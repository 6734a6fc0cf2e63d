# make demo [FAST=1] | test | lint | setup | clean

PYTHON_FILES = src sim_bridge test tools launch bench

.PHONY: help demo test lint format setup clean

help:
	@echo 'make demo          one GRAPE iteration on LIBERO, installation included (FAST=1: a short one)'
	@echo 'make test          the tests'
	@echo 'make lint          formatting and static checks'
	@echo 'make format        format the sources'
	@echo 'make setup         only install into .venv'
	@echo 'make clean         remove build outputs; .venv and runs/ stay'

demo: setup
	.venv/bin/grape demo $(if $(FAST),--fast)

test: setup build/tools/play_launch
	.venv/bin/python -m pytest test/ --durations=15

# Reads the launch files in the tests, which say so and skip where it could not be installed.
build/tools/play_launch: | setup
	-@mkdir -p build && .venv/bin/python -m pip --disable-pip-version-check install -q --no-deps \
		--target build/tools play-launch==0.16.0 >build/play-launch.log 2>&1 || \
		echo 'play-launch was not installed: see build/play-launch.log'

lint: setup
	.venv/bin/ruff format --check $(wildcard $(PYTHON_FILES))
	.venv/bin/ruff check $(wildcard $(PYTHON_FILES))

format: setup
	.venv/bin/ruff format $(wildcard $(PYTHON_FILES))

setup:
	@tools/setup.sh

clean:
	rm -rf build install log .pytest_cache .ruff_cache *.egg-info src/*.egg-info
	find src sim_bridge test tools launch -name __pycache__ -type d -prune -exec rm -rf {} +
