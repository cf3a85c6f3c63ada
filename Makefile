# Two commands do all: `make demo` and `make test`. Both create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
ASSETS := $(if $(NNAC_ASSETS),NNAC_ASSETS=$(NNAC_ASSETS))

.PHONY: demo test test-all test-train lint golden clean

demo: .venv/installed
	$(BIN)/nnac demo

test: .venv/installed-dev lint
	$(ASSETS) $(BIN)/python -m pytest -q -n 2 -m "not slow" --hypothesis-profile=repeatable

test-all: .venv/installed-dev lint
	$(ASSETS) $(BIN)/python -m pytest -q -n 2

test-train: .venv-train/installed  # the training companions, with torch, in an environment of their own
	$(ASSETS) .venv-train/bin/python -m pytest -q -n 2 tests/test_train_*.py tests/test_architectures.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

golden: .venv/installed-dev
	$(BIN)/python -m pytest -q tests/test_golden.py --update-golden

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

.venv-train/installed: pyproject.toml
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/pip install -q --disable-pip-version-check -e '.[dev,train]'
	touch $@

clean:
	rm -rf .venv .venv-train build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
