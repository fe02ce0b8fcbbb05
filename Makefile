# Each target does all of its own set-up. `make demo`: the default study. `make test`: what a change usually breaks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
# Tests compare with what a CPU computes: a card, where there is one, is hidden from them.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadfile
export HF_HUB_DISABLE_TELEMETRY = 1
# Where it is set, as in many containers, every process compiles all modules and tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-full test-gpu test-newest fuzz audit-dependencies lint lock docs screenshots dist release clean

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankwise needs Python 3.11+")'
	$(PYTHON) -m venv $*

# Only what a study needs.
$(BIN)/rankwise: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

# The tests' tools too, in the versions of constraints.txt.
$(VENV)/.test-tools: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $(BIN)/rankwise $@

# The same in the newest versions that pyproject.toml allows.
$(NEWEST)/.test-tools: pyproject.toml | $(NEWEST)/bin/python
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	@touch $@

# The tests' browser, where it can be installed; else they are skipped.
%/.browser: tests/support/chromium.sh | %/bin/python
	@sh $<
	@touch $@

demo: $(BIN)/rankwise
	$(BIN)/rankwise run

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports

test: lint
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) -m "not slow and not gpu and not thorough"

# Everything: after the quick tests kills, full disks, hostile input, browsers, pages, benchmarks.
test-all: test $(VENV)/.browser
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) -m "thorough and not slow and not gpu"

# On a machine with a card; `python -m benchmarks.gpu` measures it too.
test-gpu: $(VENV)/.test-tools
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu

test-full: lint
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=$$(nproc) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# Hostile input for every parser, for an hour; the last line is JSON.
fuzz: $(VENV)/.test-tools
	HF_HUB_OFFLINE=1 RANKWISE_FUZZ_SECONDS=$${RANKWISE_FUZZ_SECONDS:-3600} $(BIN)/python -m tests.fuzz

# Known vulnerabilities of the versions in constraints.txt. Without the advisory database a package "could not be audited".
audit-dependencies: $(VENV)/.test-tools
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --disable-pip --no-deps --progress-spinner off -r constraints.txt

test-newest: $(NEWEST)/.test-tools $(NEWEST)/.browser
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(NEWEST)/bin/python $(PYTEST) -m "not slow and not gpu"

# Renews constraints.txt from the newest versions; run it after `make test-newest` has passed.
lock: $(NEWEST)/.test-tools
	{ head -2 constraints.txt; $(NEWEST)/bin/python -m pip freeze --exclude-editable | \
		sed 's/+[a-z0-9.]*$$//' | grep -viE '^(torch|triton|pytorch-triton|nvidia-|cuda-)'; } > constraints.new
	mv constraints.new constraints.txt

# The list of verbs, and the site: build/site/index.html.
docs: $(VENV)/.test-tools
	$(BIN)/typer rankwise.cli.main utils docs --name rankwise --title "The rankwise command" --output docs/cli.md
	$(BIN)/python -m sphinx -b html -W -q -d build/doctrees docs build/site

# The pictures of the README, from a study's report.
STUDY ?= studies/quickstart
screenshots: $(VENV)/.test-tools $(VENV)/.browser
	$(BIN)/python -m docs.screenshots $(STUDY)

# The source distribution and the wheel, in dist/.
dist: $(BIN)/python
	rm -rf dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# Writes the version where it stands, heads the changelog, commits and tags. VERSION=1.2.3; CONTRIBUTING.md has the steps.
release: $(BIN)/python
	$(BIN)/python -m pip install --quiet bump-my-version
	$(BIN)/bump-my-version bump --new-version $(VERSION)

clean:
	rm -rf $(VENV) $(NEWEST) build dist .pytest_cache .ruff_cache .import_linter_cache
