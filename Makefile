# Every target works on a machine that has Python 3.11 or newer and make, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 2
PYTEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-full lint format

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# Two devices use two cores better than one device with two threads does.
quickstart: $(VENV)/.installed ## Train on the embedded world (at most 5 minutes), draw and score
	JAX_NUM_CPU_DEVICES=2 $(BIN)/python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

test: lint ## Run every check and the tests that are not marked full (13 minutes on 2 CPU cores)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not full" $(PYTEST_FLAGS)

test-fast: $(VENV)/.installed-test ## Run the tests that are marked neither slow nor full
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not slow and not full" $(PYTEST_FLAGS)

# A file's tests share a process, as they share the runs that they make; in the order of their names the longest come first.
test-full: $(VENV)/.installed-test ## Run the tests that are marked full: real sizes, whole runs
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder -m full $(PYTEST_FLAGS)

lint: $(VENV)/.installed-test ## Check style, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed-test ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: expected Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=python3.11 (or newer)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@# One file of it is read, CLIP's vocabulary; its dependencies would bring another PyTorch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt open-clip-torch
	@touch $@ $(VENV)/.installed
