# Every command sets up what it needs: a virtual environment and the pinned dependencies. Needs Python 3.11 to 3.13, git, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help install search test test-slow lint types floors

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
	$(BIN)/ruff check nasvit tests experiments

types: $(STAMP)
	$(BIN)/mypy

floors: $(STAMP)
	$(BIN)/lint-imports

test: lint types floors ## lint, types, floors and the fast tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP) ## the tests marked slow
	$(BIN)/python -m pytest -m slow
