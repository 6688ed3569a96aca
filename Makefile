# Needs only Python >= 3.11, make and git. `make` without a target lists the targets.
PYTHON ?= python3
BETAS ?= 0.1,0.3,0.5
BASE ?= HEAD
ORIGIN ?= origin-small
VENV ?= .venv
UV := $(VENV)/bin/uv
ACTIVATE := . $(VENV)/bin/activate
CHECK := python -m prefdag.runtime.dvc_files# DVC reads params.yaml without limits
INSTALLED := $(VENV)/.installed
EXTRA := $(VENV)/.extra
LOCK := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
# What comes beside requirements.lock leaves its versions as they are, and is installed with --no-deps.
BESIDE = $(LOCK) -c requirements.lock $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' $(1))

# MLflow's server in compose.yaml: with users, on PostgreSQL, with artifacts on S3. The tests start it in .venv.
SERVER := 'mlflow[auth]' 'psycopg[binary]' boto3

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

.PHONY: help setup repository repro sweep origin bench-gpu test test-slow chaos lint dag same-bytes docs qlora s3 ui lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(INSTALLED) ## create .venv and install the hash-locked requirements (7 GB)
	@test -n "$(ASCII)" || echo "note: $(QUEUE)"

repository:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "This folder is not a Git repository, which DVC needs: $(START)"; exit 1; }

repro: repository setup ## run the whole pipeline with params.yaml; stages that are up to date are skipped
	@$(ACTIVATE) && $(CHECK) && dvc repro
	@echo
	@echo "Experiments:  make ui, then open http://127.0.0.1:5000/$(RUNS)"
	@echo "Next:         . $(VENV)/bin/activate && dvc exp run -S beta=0.3"
	@echo
	@$(ACTIVATE) && prefdag summary

sweep: repository setup ## run one experiment per beta (BETAS=0.1,0.3,0.5) and plot the frontier
	@test -n "$(ASCII)" || { echo "$(QUEUE)"; exit 1; }
	@$(ACTIVATE) && $(CHECK) && dvc exp run --queue -S 'beta=$(BETAS)' && dvc exp run --run-all
	@$(ACTIVATE) && prefdag frontier

origin: setup ## run the experiment this project grew from, small; docs/origin.md has ORIGIN and FILES
	@$(ACTIVATE) && python -m benchmarks.origin run .prefdag/origin --profile $(ORIGIN) $(FILES)

bench-gpu: $(EXTRA)-test $(EXTRA)-gpu ## measure training on this machine's GPU against TRL, for hours; ARGS="--shape 8B" for a part
	@$(ACTIVATE) && python -m benchmarks.bench_gpu $(ARGS) && python -m benchmarks.gpu_page > docs/gpu.md

test: $(EXTRA)-s3 $(EXTRA)-qlora $(EXTRA)-test ## run the fast tests
	@$(ACTIVATE) && pytest

test-slow: $(EXTRA)-s3 $(EXTRA)-qlora $(EXTRA)-test ## run the slow tests
	@$(ACTIVATE) && pytest -m slow --durations=30

chaos: $(EXTRA)-s3 $(EXTRA)-test ## run the destructive tests: kills, full disks, dead servers, flipped bytes; prints survived/tried
	@$(ACTIVATE) && pytest -m chaos

lint: setup ## check style and types
	@$(ACTIVATE) && ruff check && ruff format --check && mypy

dag: setup ## write deps and params of dvc.yaml, and the table in docs/pipeline.md, from the code
	@$(ACTIVATE) && python -m prefdag.project.dag

same-bytes: $(EXTRA)-s3 $(EXTRA)-test ## compare the outputs of the tiny pipeline with those of a revision: BASE=HEAD~1
	@$(ACTIVATE) && python tests/pipeline/same_bytes.py $(BASE)

docs: setup ## write the generated pages of docs from the code and the results
	@$(ACTIVATE) && python -m prefdag.project.losses_page > docs/losses.md
	@$(ACTIVATE) && python -m prefdag.estimate.page > docs/sizes.md
	@$(ACTIVATE) && python -m benchmarks.page > docs/benchmarks.md
	@$(ACTIVATE) && python -m benchmarks.gpu_page > docs/gpu.md
	@$(ACTIVATE) && python -m benchmarks.growth_page > docs/growth.md

qlora: $(EXTRA)-qlora ## install bitsandbytes, for kind: qlora on a GPU, and for optimizer: adamw_8bit

s3: $(EXTRA)-s3 ## install dvc-s3, for sources and remotes on S3

ui: setup ## show the experiments in MLflow; Ctrl-C stops it
	@echo "Experiments:  http://127.0.0.1:5000/$(RUNS)"
	@$(ACTIVATE) && mlflow ui

lock: $(VENV)/.uv ## update the lock files to pyproject.toml and keep versions; ARGS=--upgrade takes the newest
	$(LOCK) $(ARGS) --extra dev pyproject.toml --output-file requirements.lock
	echo uv | $(LOCK) $(ARGS) - --output-file requirements-uv.lock
	echo bitsandbytes | $(LOCK) $(ARGS) --no-deps - --output-file requirements-qlora.lock
	echo liger-kernel | $(LOCK) $(ARGS) --no-deps - --output-file requirements-gpu.lock
	$(call BESIDE,requirements.lock) $(ARGS) --extra s3 pyproject.toml --output-file requirements-s3.lock
	printf '%s\n' 'trl==1.16.*' 'moto[s3]' tensorboard wandb $(SERVER) | $(call BESIDE,requirements.lock requirements-s3.lock) \
		-c requirements-s3.lock - --output-file requirements-test.lock
	printf '%s\n' $(SERVER) | $(LOCK) $(ARGS) -c requirements.lock -c requirements-s3.lock -c requirements-test.lock \
		- --output-file requirements-server.lock

clean: ## remove .venv, caches and test outputs; keep data, models, reports and experiments
	@if [ -s $(VENV)/.uv ] || [ -n "$$($(OURS))" ]; then echo rm -rf $(VENV); rm -rf $(VENV) && rm -f $(CHANGING); \
		elif [ -e $(VENV) ]; then echo "$(VENV): not made by make setup, so it stays"; fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .prefdag/tests
	find prefdag stages tests -name __pycache__ -prune -exec rm -rf {} +

# Stamps (`.uv`, `.installed`, `.extra-NAME`) are written last. While $(VENV) is made or changed, the link $(CHANGING) is beside
# it, so that the next `make setup` knows that one was killed, and makes the folder anew. It is written only for a folder that
# `make setup` made, whose `.uv` is not empty. Any other environment (make VENV=...) is used, and never removed. A link needs no
# space on a full disk.
CHANGING := $(VENV).tmp
OURS = readlink $(CHANGING) 2>/dev/null | sed -n 's/^make-setup-//p'
define CLAIM
	test -n "$(VENV)" || { echo "VENV is empty"; exit 1; }; \
	other=$$($(OURS)); \
	if [ -z "$$other" ] && { [ -e $(CHANGING) ] || [ -L $(CHANGING) ]; }; then \
		echo "$(CHANGING): exists and is not of make setup; move it away"; exit 1; fi; \
	if [ -n "$$other" ] && [ "$$other" != $$PPID ]; then \
		if kill -0 "$$other" 2>/dev/null; then \
			echo "Process $$other is setting up $(VENV). If it is no make, remove $(CHANGING)."; exit 1; fi; \
		echo "The last setup of $(VENV) did not finish: it is made anew"; rm -rf $(VENV) || exit 1; fi; \
	if [ -n "$$other" ] || [ -s $(VENV)/.uv ] || { [ ! -e $(VENV) ] && [ ! -L $(VENV) ]; }; then \
		ln -sfn make-setup-$$PPID $(CHANGING) || exit 1; \
	elif [ ! -e $(VENV)/pyvenv.cfg ]; then \
		echo "$(VENV): is not a virtual environment; choose another folder, as in make VENV=.venv"; exit 1; fi
endef

ifneq ($(shell $(OURS)),)
.PHONY: $(VENV)/.uv
endif

# pip only fetches uv, and uv installs the rest: half a minute instead of many. Neither is given an index, so each uses the one
# configured on this machine. Progress is shown only on a terminal.
$(VENV)/.uv: requirements-uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: 3.11 or newer is needed; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) lacks venv or ensurepip; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(CLAIM)
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(UV) --version >/dev/null || { echo "$(VENV): is damaged; remove it, and run make setup again"; exit 1; }
	@if [ -L $(CHANGING) ]; then echo "made by make setup" > $@; else touch $@; fi

# Compiles to bytecode: with PYTHONDONTWRITEBYTECODE set, as in many containers, every stage would compile 4,000 modules.
$(INSTALLED): $(VENV)/.uv requirements.lock pyproject.toml
	@$(CLAIM)
	@echo "Installing into $(VENV) ..."
	@test -t 2 || quiet=--quiet; \
		$(UV) pip install $$quiet --python $(VENV)/bin/python --compile-bytecode --require-hashes -r requirements.lock && \
		$(UV) pip install $$quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@
	@rm -f $(CHANGING)

# What only some need, from requirements-NAME.lock. `test`: what only tests import, as TRL, whose losses are compared with ours
# (tests/dpo/test_against_trl.py), a server that speaks S3, and the trackers beside MLflow. `gpu`: Liger, for TRL in
# `make bench-gpu`; FlashAttention is used if it is there, but has no wheel to lock. A killed installation is repeated as a whole.
$(EXTRA)-%: requirements-%.lock $(INSTALLED)
	@$(UV) pip install --quiet --python $(VENV)/bin/python --reinstall --no-deps --require-hashes -r $<
	@touch $@
