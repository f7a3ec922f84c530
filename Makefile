# Everything runs in an environment of its own: make demo, make test and make check install it when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help install demo lab test check format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## make the environment and install the project with the tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install ## train BN, LN and GN on the built-in shapes, judge the claim, print the verdict and the report's place
	$(BIN)/python scripts/study.py --config configs/studies/demo.yaml

lab: install ## the normalisation lab on the built-in shapes: an MLP of eight layers, a report with its pictures
	$(BIN)/python scripts/lab.py --config configs/lab/demo.yaml

test: install ## the whole test suite
	$(BIN)/python -m pytest -q

check: install ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, the demo's study and its lab
	rm -rf $(VENV) runs/demo runs/lab-demo
