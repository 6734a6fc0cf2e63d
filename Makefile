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

test: setup
	.venv/bin/python -m pytest test/ --durations=15

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
