# Every target runs in an environment of its own, which the first call installs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help install demo lab test kill-test check format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## make the environment and install the project with the tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install ## train BN, LN and GN on built-in shapes, compare running and target statistics, write a page
	$(BIN)/python scripts/study.py --config configs/studies/demo.yaml

lab: install ## the normalisation lab on built-in shapes: what the norms do to gradients and units
	$(BIN)/python scripts/lab.py --config configs/lab/demo.yaml

test: install ## the test suite, one process per core
	$(BIN)/python -m pytest -q -n auto

kill-test: install ## kill every program at many moments and check that the same command completes the work
	$(BIN)/python tests/campaigns/kill.py

check: install ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format the code and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and what demo and lab wrote
	rm -rf $(VENV) runs/demo runs/lab-demo
