# Every command sets up what it needs: a virtual environment and the pinned dependencies. Needs Python 3.11 to 3.13, git, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
# A file's tests stay in one process: they share runs and trained networks.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: help install search test test-slow lint types floors docs wheel canary

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

install: $(STAMP) ## environment and dependencies

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

search: $(STAMP) ## a search on the embedded digits; prints where the report is
	$(BIN)/nasvit search experiments/digits_quick.yaml

lint: $(STAMP)
	$(BIN)/ruff check nasvit tests experiments examples docs/_site.py

types: $(STAMP)
	$(BIN)/mypy

floors: $(STAMP)
	$(BIN)/lint-imports

test: lint types floors ## lint, types, floors and the fast tests
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## the tests marked slow
	$(PYTEST) -m slow

wheel: $(STAMP) ## a wheel in dist/, installed into an empty environment in an empty folder, and a search there (PYTHON=python3.13: in that one)
	rm -rf build dist build-wheel-test
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build-wheel-test/venv
	build-wheel-test/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/nasvit-*.whl
	cd build-wheel-test && venv/bin/nasvit list spaces && venv/bin/nasvit search --budget 10 --device "cpu?noise=keep" --out run && test -s run/report.html
	rm -rf build build-wheel-test

docs: $(STAMP) ## the site of the documents, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

canary: ## the fast tests and those that run Ray with the newest torch, timm, Optuna and Ray, in an environment of its own (PRE=--pre: pre-releases, too)
	rm -rf .venv-canary
	$(PYTHON) -m venv .venv-canary
	.venv-canary/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager $(PRE) -e ".[dev]"
	.venv-canary/bin/python -m pip list --format=freeze | grep -E '^(torch|torchvision|timm|optuna|ray|numpy|pandas)=='
	.venv-canary/bin/python -m pytest -m "not slow"
	.venv-canary/bin/python -m pytest -m slow -k "ray or cluster or tune"
