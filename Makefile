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

# The fast tests, then what was built, installed in fresh environments as a user would.
test: dev dist
	$(BIN)/python -m pytest -n 2 -q
	$(BIN)/python -m pytest -q -m packaging

test-all: dev dist
	$(BIN)/python -m pytest -n 2 -q -m "not gpu and not network and not packaging"
	$(BIN)/python -m pytest -q -m packaging

dist: dev
	rm -rf dist
	for package in . $(PLUGINS); do \
		$(BIN)/python -m build --no-isolation --outdir dist $$package >dist.log 2>&1 || { cat dist.log; exit 1; }; \
	done
	rm -f dist.log; ls dist

record: dev
	$(BIN)/python -m wsizoo.demo.record

bench: dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv dist build wsizoo-demo
