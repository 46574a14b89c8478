# Three commands for everybody, five more for who changes things. Each creates .venv when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Processes of the tests; each test has one thread.
WORKERS ?= 2
# Where bytecode is switched off, every process would compile 500 test files for ten seconds.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
# Keeps the first run to a few minutes, unless ARGS have others. The run is another one than without eval.every_steps=0.
TRAIN = $(if $(findstring budget.,$(ARGS)),,budget.tokens=1.5M) $(if $(findstring eval.every_steps,$(ARGS)),,eval.every_steps=0)

.PHONY: train models test test-slow test-long test-all check docs

train: .venv/installed
	$(BIN)/python train.py model=moe $(TRAIN) $(ARGS)

# The models of docs/tutorials/chat.md, in models/.
models: .venv/installed
	PYTHON=$(BIN)/python sh examples/models/train.sh models

test: .venv/installed-dev
	$(PYTEST) $(ARGS)

test-slow: .venv/installed-dev
	$(PYTEST) -m "slow and not long and not gpu" --durations=40 $(ARGS)

test-long: .venv/installed-dev
	$(PYTEST) -m "long and not gpu" --durations=40 $(ARGS)

test-all: .venv/installed-dev
	$(PYTEST) -m "slow or not slow" $(ARGS)

check: .venv/installed-dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

# A warning ends the build. The variable silences the theme's notice about other generators.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[report]"
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ .venv/installed
