# Each target does all of its own set-up. `make demo`: the default study. `make test`: what a change usually breaks.
# They install the versions of constraints.txt; UV_TORCH_BACKEND=cpu takes PyTorch's builds for the CPU.
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
OLDEST := .venv-oldest
# The uv that is there; else pip brings one into .venv.
UV := "$(or $(shell command -v uv),$(BIN)/uv)"
UV_HERE := $(if $(shell command -v uv),,$(BIN)/uv)
# Tests compare with what a CPU computes: a card, where there is one, is hidden from them.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadfile
QUICK := "not slow and not gpu and not thorough"
export HF_HUB_DISABLE_TELEMETRY = 1
# Where it is set, as in many containers, every process compiles all modules and tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-full test-gpu test-newest test-oldest fuzz audit-dependencies lint lock docs screenshots dist \
	release clean

$(BIN)/uv:
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankwise needs Python 3.11+")'
	$(or $(PYTHON),python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

%/bin/python: | $(UV_HERE)
	test -x $@ || $(UV) venv --quiet $(PYTHON:%=--python %) $*

# Only what a study needs.
$(BIN)/rankwise: pyproject.toml constraints.txt | $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[train]'
	@touch $@

# The tests' tools too.
$(VENV)/.test-tools: pyproject.toml constraints.txt | $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(BIN)/rankwise $@

# The same in the newest versions that pyproject.toml allows, and in the oldest.
$(NEWEST)/.test-tools: pyproject.toml | $(NEWEST)/bin/python
	$(UV) pip install --quiet --python $(NEWEST)/bin/python --upgrade --editable '.[dev]'
	@touch $@

$(OLDEST)/.test-tools: pyproject.toml | $(OLDEST)/bin/python
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

# The tests' browser, where it can be installed; else they are skipped.
%/.browser: tests/support/chromium.sh | %/bin/python
	@sh $<
	@touch $@

# DEMO: changes to the study, such as "train.epochs=1".
demo: $(BIN)/rankwise
	$(BIN)/rankwise run $(DEMO)

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

test: lint
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) -m $(QUICK)

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
	$(UV) tool run pip-audit --disable-pip --no-deps --progress-spinner off -r constraints.txt

# With the newest and with the oldest versions.
test-newest: $(NEWEST)/.test-tools
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(NEWEST)/bin/python $(PYTEST) -m $(QUICK)

test-oldest: $(OLDEST)/.test-tools
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(PYTEST) -m $(QUICK)

# Renews constraints.txt from the newest versions, for all systems and Pythons; run it after `make test-newest` has passed.
lock: | $(UV_HERE)
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
		--custom-compile-command "make lock" pyproject.toml --output-file constraints.txt

# The list of verbs, and the site: build/site/index.html.
docs: $(VENV)/.test-tools
	$(BIN)/typer rankwise.cli.main utils docs --name rankwise --title "The rankwise command" --output docs/cli.md
	$(BIN)/python -m sphinx -b html -W -q -d build/doctrees docs build/site

# The pictures of the README, from a study's report.
STUDY ?= studies/quickstart
screenshots: $(VENV)/.test-tools $(VENV)/.browser
	$(BIN)/python -m docs.screenshots $(STUDY)

# The source distribution and the wheel, in dist/.
dist: | $(UV_HERE)
	rm -rf dist
	$(UV) build --quiet
	$(UV) tool run twine check --strict dist/*

# Writes the version where it stands, heads the changelog, commits and tags. VERSION=1.2.3; CONTRIBUTING.md has the steps.
release: | $(UV_HERE)
	$(UV) tool run bump-my-version bump --new-version $(VERSION)

clean:
	rm -rf $(VENV) $(NEWEST) $(OLDEST) build dist .pytest_cache .ruff_cache .import_linter_cache
