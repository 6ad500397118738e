# Two commands: `make demo` and `make test`. Each sets up a virtual environment of its own in .venv;
# a fresh clone with Python >= 3.11 (with venv) is all that they need. PYTHON=… chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
REAP := $(BIN)/python tests/support/reap.py
# Test files run side by side; each starts nodes of its own. Three, also on two cores: nodes wait for each other much.
JOBS ?= 3
PYTEST_ARGS ?=
FILES ?=
BENCH ?= $(wildcard benchmarks/*.py)

.DELETE_ON_ERROR:
.PHONY: help demo test lint test-fast test-long bench setup clean docs

help:
	@echo 'make demo [FILES="a b"]  publish, request and forget real files in a temporary vault (under a minute)'
	@echo 'make demo NODES=3       the same with members that join, share and forget together (about a minute)'
	@echo 'make test                ruff, mypy --strict, import-linter, pytest'
	@echo 'make test-long           the tests that take longer than a minute each, and those that need PostgreSQL'
	@echo 'make bench [BENCH=file]  measure, beside what we compare with'
	@echo 'make lint | test-fast    the two halves of make test'
	@echo 'make docs                write the references of command line and Python from the code'
	@echo 'make clean               remove the environment, caches and builds'

setup: $(STAMP)

# The stamp is inside the environment, and last: an interrupted set-up starts again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("walytis-vault needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": choose another with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo 'Setting up $(VENV) (once; a few minutes on a slow line)'
	@$(PYTHON) -m venv $(VENV) || { echo 'python3 lacks venv: on Debian and Ubuntu, apt install python3-venv' >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/walytis-vault demo $(if $(NODES),--nodes $(NODES)) $(FILES)

test: lint test-fast

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-fast: $(STAMP)
	$(REAP) --limit 510 $(BIN)/python -m pytest -m 'not long' -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-long: $(STAMP)
	WALYTIS_VAULT_REQUIRE_POSTGRES=1 $(REAP) --limit 7200 $(BIN)/python -m pytest -m 'long or postgres' -o timeout=1800 $(PYTEST_ARGS)

bench: $(STAMP)
	@for program in $(BENCH); do echo "== $$program"; PYTHONPATH=tests $(REAP) --limit 3600 $(BIN)/python $$program || exit 1; done

docs: $(STAMP)
	@$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf *.egg-info src/*.egg-info
