# Two commands from a fresh machine: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What is compiled is kept, wherever this runs: half a second of every start.
export PYTHONDONTWRITEBYTECODE :=
# Two processes of one thread each: small images gain little from two threads in one.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What the snippet for JavaScript needs; its test skips by name without.
NODE := .node

.PHONY: help install demo docs test test-slow test-exhaustive test-real mutation runtime-wheel lint clean node

help:
	@echo "make demo       train on a small data set that comes with an installed package"
	@echo "make docs       build the documentation into site/; open site/index.html"
	@echo "make test       the default tests (no network, no outside data)"
	@echo "make test-slow  the tests that take more than a second each"
	@echo "make test-exhaustive  the long tests: law 1 at every boundary of 17 backbones, killed runs, exports"
	@echo "make test-real  the tests on real photographs (HEADSTART_DATA, default ../shared/data)"
	@echo "make mutation   mutation testing of eight modules (MODULES=serve/guard: of these; an hour for all of them)"
	@echo "make node       what the test of the JavaScript snippet needs, where there is npm"
	@echo "make runtime-wheel  the wheel headstart-runtime, which predicts without PyTorch; in packages/runtime/dist"
	@echo "make lint       format, lint and types"
	@echo "make clean      remove the environment and what the demo wrote"

# pip would compile on one core, the packages' own tests as well. What one Python cannot compile none of its imports needs.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headstart needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[all,dev]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/headstart demo

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir site
	@echo "Open site/index.html"

test: $(STAMP)
	$(SIDE_BY_SIDE)

test-slow: $(STAMP)
	$(SIDE_BY_SIDE) -m 'slow and not exhaustive'

test-exhaustive: $(STAMP)
	HEADSTART_NODE_PACKAGES=$(CURDIR)/$(NODE) $(SIDE_BY_SIDE) -m exhaustive

node:
	@command -v npm > /dev/null && npm install --silent --no-audit --no-fund --ignore-scripts --no-package-lock --prefix $(NODE) \
	  onnxruntime-web@1.30.0 sharp@0.34 > /dev/null 2>&1 || echo "no npm, or no packages: the test of the JavaScript snippet skips"

# Those with a clock alone and from a cold cache; the others side by side, from the cache and the run that these leave.
test-real: $(STAMP)
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && export HEADSTART_TEST_CACHE=$$cache && \
	  $(BIN)/python -m pytest tests/real -m 'not untimed' && \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/real -n 2 --dist worksteal -m untimed

# In one process and beside other work: each mutant is a fork that runs the tests that reach it.
mutation: $(STAMP)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python tests/mutation.py $(MODULES)

# The build needs no environment of ours; pip fetches hatchling for it.
runtime-wheel:
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir packages/runtime/dist packages/runtime

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NODE) headstart-demo site packages/runtime/dist
