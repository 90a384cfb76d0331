# Everything from a fresh checkout. Needs CPython 3.11 or newer and make; set-up goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := torch==2.13.0

# `make test T=tests/unit` tests what lies there; `make test T='meter and not cluster'` what has that in its name.
T := tests
PART = $(if $(filter tests tests/%,$(firstword $(T))),$(T),tests -k "$(T)")

# Tests wait for the servers that they start half of the time: three processes keep two cores busy.
PROCESSES ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))

# Tests start hundreds of processes. Without byte code each compiles all of Patronage, which takes half of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install torch demo serve lint check test explore bench format hooks audit-dependencies clean

install: $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Patronage needs CPython 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The locks are complete, so nothing is resolved: --no-deps is faster, and keeps torch out of what only serves.
$(VENV)/.installed: $(VENV)/.created requirements.lock pyproject.toml
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.installed requirements-demo.lock
	$(PIP) --no-deps -r requirements-demo.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements-dev.lock
	$(PIP) --no-deps -r requirements-dev.lock
	@touch $@

$(VENV)/.torch: $(VENV)/.installed requirements-torch.lock
	$(PIP) $(TORCH)
	$(PIP) --no-deps -r requirements-torch.lock
	@touch $@

$(VENV)/.bench: $(VENV)/.dev $(VENV)/.torch requirements-bench.lock
	$(PIP) --no-deps -r requirements-bench.lock
	@touch $@

torch: $(VENV)/.torch

demo: $(VENV)/.demo
	$(BIN)/patronage demo

serve: install
	$(BIN)/patronage serve --host 127.0.0.1 --port 8080

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint
	$(BIN)/pytest tests/unit tests/properties tests/house -n 2 --dist worksteal -q

# A part is tested with what is installed; tests that need torch are skipped, and say so, until `make test` installed it.
test: $(VENV)/.dev $(if $(filter tests,$(T)),$(VENV)/.torch)
	@echo "Testing $(T) in $(PROCESSES) processes; at the end, what was slowest and how to repeat what failed."
	$(BIN)/pytest $(PART) -n $(PROCESSES) --dist worksteal -q --durations=15 --hypothesis-profile=full

# New examples each time; those that failed are kept in .hypothesis/ and tried first the next time.
explore: $(VENV)/.dev $(VENV)/.torch
	$(BIN)/pytest $(if $(filter tests,$(T)),tests/properties,$(PART)) -n 2 --dist worksteal -q --durations=15 --timeout=7200 --hypothesis-profile=explore

# git runs .githooks/pre-commit before each commit from then on.
hooks: $(VENV)/.dev
	git config core.hooksPath .githooks

$(VENV)/.audit: $(VENV)/.dev requirements-audit.lock
	$(PIP) --no-deps -r requirements-audit.lock
	@echo '$(TORCH)' > $@

# Every pinned package, asked of the database of known vulnerabilities. What could not be looked up is no pass.
audit-dependencies: $(VENV)/.audit
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off $(foreach lock,$(wildcard requirements*.lock) $<,-r $(lock)) || \
	{ echo "A package has a known vulnerability, or could not be looked up: the lines above say which. Without the network nothing is known."; false; }

bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
