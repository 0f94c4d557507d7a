# Everything a developer or CI does; `make` lists it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup dev demo site test thorough slow format benchmark clean

help:  ## list these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

setup: .venv/base  ## .venv with andon and its locked dependencies, no torch
dev: .venv/dev  ## the same with what tests and gradient training need

.venv/base: locks/base.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r locks/base.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/dev: .venv/base locks/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r locks/dev.txt
	@touch $@

demo: .venv/base  ## train on real solar cells, evaluate, write a report to demo/
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps elpv-dataset==1.0.0.post1
	$(BIN)/python scripts/demo.py demo

site: .venv/base locks/docs.txt  ## the documentation as pages, in build/site
	$(BIN)/python -m pip install -q --disable-pip-version-check -r locks/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

test: .venv/dev  ## the check after each change: format, lint, types, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -n 2

thorough: .venv/dev  ## the tests with servers, browsers, many processes, trainings by gradient
	$(BIN)/pytest -n 3 -m "thorough and not slow"

slow: .venv/dev  ## the checks on full data sets (../shared/data), of detectors for comparison, and long ones in a browser
	$(BIN)/pytest -m slow

format: .venv/dev  ## put the code into the house's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

benchmark: .venv/dev  ## the table of docs/benchmarks.md
	$(BIN)/python benchmarks/foundation.py

clean:  ## remove what the commands above made
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build src/andon.egg-info
