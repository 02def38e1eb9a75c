# Every target does its own set-up; a second call is instant. PIP_* variables and PYTHON are respected.
#
#   make demo        the main job on a real model and real data; a second time it goes on, or shows the result
#   make demo-fresh  the same, from the start
#   make test        all tests, two files at a time (JOBS=2): half of the time goes into waiting for servers and workers
#   make lint        ruff, mypy, and the layers between packages
#   make check       lint and test: what CI runs
#   make bench       the measurement side by side with a plain script (NAME=plain_tune)

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOME_OF_DEMO := sweeps
NAME ?= plain_tune
JOBS ?= 2
PACKAGES := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: setup demo demo-fresh test lint check bench assets
.DEFAULT_GOAL := check

setup: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else f"Python {sys.version.split()[0]} came, but Sweeper runs on 3.11 and 3.12; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(PACKAGES) | $(BIN)/python
	@echo "installing Sweeper into $(VENV) (once; a few minutes)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(PACKAGES) | $(BIN)/python
	@echo "installing Sweeper and what its tests need into $(VENV) (once; a few minutes)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.runtime $@

assets: $(VENV)/.runtime
	$(BIN)/python scripts/demo_assets.py

demo: assets
	$(BIN)/sweeper run search_spaces/demo.yaml --home $(HOME_OF_DEMO)

demo-fresh: assets
	@$(BIN)/python scripts/forget_demo.py $(HOME_OF_DEMO)
	$(BIN)/sweeper run search_spaces/demo.yaml --home $(HOME_OF_DEMO)

test: $(VENV)/.dev
	bash scripts/system-deps
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

check: lint test

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.$(NAME)
