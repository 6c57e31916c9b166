# make demo   set everything up and run the main job on real input, without a network beyond the package index
# make test   set everything up and run the tests
# make test-fast   the same without the slow tests and whole commands, while you work
# make lint   ruff, mypy, import contracts

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= auto    # test files that run at a time
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
FAST := tests/architecture tests/contract tests/unit

.PHONY: demo test test-fast lint format table clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(ARGS) $(FAST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

table: $(VENV)/.demo
	$(BIN)/python scripts/reproduce.py

# A stamp per set of extras: a second call costs nothing until pyproject.toml changes.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[offline,report]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[offline,report,dev]"
	@touch $(VENV)/.demo $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "clipadapt needs Python 3.11 or newer; say which with: make demo PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
