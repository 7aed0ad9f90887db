# Everything a contributor types. Needs Python 3.11 or newer, git and make; the rest is installed into .venv.
#
#   make demo     run the tutorial flow, with one bad row in it
#   make test     run the tests, two at a time: make test JOBS=4
#   make test-plugins  run the tests of what is in plugins/, with the real engines and servers: make test-plugins ONLY=dask
#   make lint     check format, style, import direction and types
#   make check    run everything a change must pass: lint, test and test-plugins
#   make torture  kill -9 localflow N times per state store and look at everything after each: make torture N=1000;
#                 a fifth as often with each of VARIANTS: two engines on one store, a full disk, appends that fail
#   make bench    measure: targets, ratios against what one would write by hand: make bench ONLY='P3 P6'
#   make bench-peers  measure the same work on other engines, installed below build/peers: make bench-peers ONLY='loky dask'
#   make clean    remove what these made
#
# Another interpreter: make test PYTHON=python3.13

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

JOBS ?= 2
N ?= 1000
VARIANTS ?= shared full faulty
ONLY ?=

PLUGINS_VENV := .venv-plugins
PLUGINS := $(patsubst plugins/localflow-%/pyproject.toml,%,$(wildcard plugins/localflow-*/pyproject.toml))

.PHONY: demo test test-plugins lint check torture bench bench-peers clean
.NOTPARALLEL:

demo: $(VENV)/.installed
	@sh examples/demo.sh "$(CURDIR)/$(BIN)/python"

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n $(JOBS) --dist worksteal

test-plugins: $(PLUGINS_VENV)/.installed
	@for name in $(or $(ONLY),$(PLUGINS)); do \
	    echo "== localflow-$$name"; \
	    (cd plugins/localflow-$$name && ../../$(PLUGINS_VENV)/bin/mypy && ../../$(PLUGINS_VENV)/bin/pytest) || failed=yes; \
	done; test -z "$$failed"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/mypy tests/typing examples/*.py
	$(BIN)/mypy --package benchmarks
	$(BIN)/pyright

check: lint test test-plugins

torture: $(VENV)/.installed-dev
	@for store in sqlite json; do \
	    $(BIN)/python -m tests.torture $$store $(N) --keep build/torture || failed=yes; \
	    for variant in $(VARIANTS); do \
	        $(BIN)/python -m tests.torture $$store $$(($(N) / 5)) --variant $$variant --keep build/torture \
	            || failed=yes; \
	    done; \
	done; test -z "$$failed"

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ONLY)

bench-peers: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.peers $(ONLY)

clean:
	rm -rf $(VENV) $(PLUGINS_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps keep repeated calls quick; a change of pyproject.toml installs anew.

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[bench]'
	@touch $(VENV)/.installed $@

$(VENV)/bin/python $(PLUGINS_VENV)/bin/python:
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' 2>/dev/null || \
	    { echo "localflow needs Python 3.11 or newer; say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); exit 1; }

$(PLUGINS_VENV)/.installed: pyproject.toml $(PLUGINS:%=plugins/localflow-%/pyproject.toml) | $(PLUGINS_VENV)/bin/python
	$(PLUGINS_VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input install --editable '.[dev]' \
	    $(foreach name,$(PLUGINS),--editable 'plugins/localflow-$(name)[test]')
	@touch $@
