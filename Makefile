# make demo: the main job, end to end.   make test: the tests.   Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: dev demo check test test-all dist record bench clean

dev: .venv/installed

.venv/installed: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'wsizoo needs Python 3.11 or newer: make PYTHON=python3.12'"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing wsizoo, its plugins and the test tools into .venv (a few minutes the first time)"
	$(PIP) -e ".[dev]" $(PLUGINS:%=-e %)
	touch $@

demo: dev
	$(BIN)/wsizoo demo

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: dev
	$(BIN)/python -m pytest -n 2

test-all: dev
	$(BIN)/python -m pytest -n 2 -m "not gpu and not network"

dist: dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	for plugin in $(PLUGINS); do $(BIN)/python -m build --outdir dist $$plugin || exit 1; done

record: dev
	$(BIN)/python -m wsizoo.demo.record

bench: dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv dist build wsizoo-demo
