# Each target does all of its own set-up. `make demo`: the default study. `make test`: all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test test-full lint docs clean

# Only what a study needs; the tests' tools are added by `test`.
$(BIN)/rankwise: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankwise needs Python 3.11+")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test-tools: pyproject.toml $(BIN)/rankwise
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(BIN)/rankwise
	$(BIN)/rankwise run

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile

test-full: lint
	OMP_NUM_THREADS=$$(nproc) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

docs: $(VENV)/.test-tools
	$(BIN)/typer rankwise.cli utils docs --name rankwise --title "The rankwise command" --output docs/cli.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
