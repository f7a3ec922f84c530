# Everything runs in an environment of its own: make demo, make test and make check install it when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NORMS := bn ln gn

.PHONY: help install demo test check format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## make the environment and install the project with the tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install ## train BN, LN and GN on the built-in shapes, evaluate them, print the table and the report's place
	rm -rf $(NORMS:%=runs/demo-%)
	set -e; for norm in $(NORMS); do \
		$(BIN)/python scripts/train.py --config configs/demo.yaml --model.norm $$norm --name demo-$$norm; \
	done
	$(BIN)/python scripts/eval_ood.py --config configs/demo_evaluation.yaml

test: install ## the whole test suite
	$(BIN)/python -m pytest -q

check: install ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and the demo's runs
	rm -rf $(VENV) $(NORMS:%=runs/demo-%)
