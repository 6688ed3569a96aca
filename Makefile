# Needs only Python >= 3.11, make and git. `make` without a target lists the targets.
PYTHON ?= python3
BETAS ?= 0.1,0.3,0.5
BASE ?= HEAD
ORIGIN ?= origin-small
VENV ?= .venv
UV := $(VENV)/bin/uv
ACTIVATE := . $(VENV)/bin/activate
INSTALLED := $(VENV)/.installed
ORACLE := $(VENV)/.oracle
LOCK := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
# What comes beside requirements.lock leaves its versions as they are, and is installed with --no-deps.
BESIDE = $(LOCK) -c requirements.lock $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' $(1))

# MLflow opens with an empty overview; this address lists the pipeline runs of the first experiment in the store, with the main
# metrics as columns (prefdag/tracking/view.py).
RUNS := \#/experiments/1/runs?viewStateShareKey=prefdag

# A ZIP of the repository has no .git.
START := git init && git add -A && git commit -m Start

# DVC cannot write the settings of a queued or temporary experiment if its cache has another path than ASCII letters.
ASCII := $(shell p="$$(cat .dvc/config.local 2>/dev/null | sed -n 's/^ *dir *= *//p')"; \
	printf %s "$${p:-$$PWD}" | LC_ALL=C grep -q '[^ -~]' || echo yes)
QUEUE := DVC cannot queue experiments in a path with letters beyond ASCII: move this folder, or put its cache elsewhere \
	with dvc cache dir --local /PATH/WITHOUT/THEM

export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup repository repro sweep origin test test-slow chaos lint dag same-bytes docs qlora s3 ui lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(INSTALLED) ## create .venv and install the hash-locked requirements (7 GB)
	@test -n "$(ASCII)" || echo "note: $(QUEUE)"

repository:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "This folder is not a Git repository, which DVC needs: $(START)"; exit 1; }

repro: repository setup ## run the whole pipeline with params.yaml; stages that are up to date are skipped
	@$(ACTIVATE) && dvc repro
	@echo
	@echo "Experiments:  make ui, then open http://127.0.0.1:5000/$(RUNS)"
	@echo "Next:         . $(VENV)/bin/activate && dvc exp run -S beta=0.3"
	@echo
	@$(ACTIVATE) && prefdag summary

sweep: repository setup ## run one experiment per beta (BETAS=0.1,0.3,0.5) and plot the frontier
	@test -n "$(ASCII)" || { echo "$(QUEUE)"; exit 1; }
	@$(ACTIVATE) && dvc exp run --queue -S 'beta=$(BETAS)' && dvc exp run --run-all
	@$(ACTIVATE) && prefdag frontier

origin: setup ## run the experiment this project grew from, small; docs/origin.md has ORIGIN and FILES
	@$(ACTIVATE) && python -m benchmarks.origin run .prefdag/origin --profile $(ORIGIN) $(FILES)

test: $(ORACLE) ## run the fast tests
	@$(ACTIVATE) && pytest

test-slow: $(ORACLE) ## run the slow tests
	@$(ACTIVATE) && pytest -m slow --durations=30

chaos: $(ORACLE) ## run the destructive tests: kills, full disks, dead servers, flipped bytes; prints survived/tried
	@$(ACTIVATE) && pytest -m chaos

lint: setup ## check style and types
	@$(ACTIVATE) && ruff check && ruff format --check && mypy

dag: setup ## write deps and params of dvc.yaml, and the table in docs/pipeline.md, from the code
	@$(ACTIVATE) && python -m prefdag.project.dag

same-bytes: $(ORACLE) ## compare the outputs of the tiny pipeline with those of a revision: BASE=HEAD~1
	@$(ACTIVATE) && python tests/pipeline/same_bytes.py $(BASE)

docs: setup ## write docs/losses.md and docs/benchmarks.md from the code and the results
	@$(ACTIVATE) && python -m prefdag.project.losses_page > docs/losses.md
	@$(ACTIVATE) && python -m benchmarks.page > docs/benchmarks.md

qlora: setup ## install bitsandbytes, for kind: qlora on a GPU
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --require-hashes -r requirements-qlora.lock

s3: setup ## install dvc-s3, for sources and remotes on S3
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --require-hashes -r requirements-s3.lock

ui: setup ## show the experiments in MLflow; Ctrl-C stops it
	@echo "Experiments:  http://127.0.0.1:5000/$(RUNS)"
	@$(ACTIVATE) && mlflow ui

lock: $(UV) ## update the lock files to pyproject.toml and keep versions; ARGS=--upgrade takes the newest
	$(LOCK) $(ARGS) --extra dev pyproject.toml --output-file requirements.lock
	echo uv | $(LOCK) $(ARGS) - --output-file requirements-uv.lock
	echo bitsandbytes | $(LOCK) $(ARGS) --no-deps - --output-file requirements-qlora.lock
	$(call BESIDE,requirements.lock) $(ARGS) --extra s3 pyproject.toml --output-file requirements-s3.lock
	printf '%s\n' 'trl==1.16.*' 'moto[s3]' tensorboard wandb | $(call BESIDE,requirements.lock requirements-s3.lock) \
		-c requirements-s3.lock - --output-file requirements-test.lock

clean: ## remove .venv, caches and test outputs; keep data, models, reports and experiments
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .prefdag/tests
	find prefdag stages tests -name __pycache__ -prune -exec rm -rf {} +

# pip only fetches uv, and uv installs the rest: half a minute instead of many. Neither is given an index, so each uses the one
# configured on this machine. Progress is shown only on a terminal.
$(UV): requirements-uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: 3.11 or newer is needed; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) lacks venv or ensurepip; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

# Compiles to bytecode: with PYTHONDONTWRITEBYTECODE set, as in many containers, every stage would compile 4,000 modules.
$(INSTALLED): $(UV) requirements.lock pyproject.toml
	@echo "Installing into $(VENV) ..."
	@test -t 2 || quiet=--quiet; \
		$(UV) pip install $$quiet --python $(VENV)/bin/python --compile-bytecode --require-hashes -r requirements.lock && \
		$(UV) pip install $$quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# What only tests import: TRL, whose losses are compared with ours (tests/dpo/test_against_trl.py), a server that speaks S3,
# and the trackers beside MLflow.
$(ORACLE): $(INSTALLED) requirements-s3.lock requirements-test.lock
	@$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --require-hashes \
		-r requirements-s3.lock -r requirements-test.lock
	@touch $@
