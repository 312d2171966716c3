# Two commands do all their own set-up: `make demo` and `make test`. VENV=/path uses another environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.usam-installed
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# Threads that spin while they wait make everything slower on a busy machine.
export OMP_WAIT_POLICY = passive

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench readme clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make the environment (reused while pyproject.toml stays the same)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## Speak a corpus, train the embedded model, test it on unseen sentences and voices
	$(BIN)/usam demo

lint: $(STAMP)  ## ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict usam

test: lint  ## Lint, types, and all fast tests
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-all: lint  ## Also the slow tests
	$(BIN)/pytest -n 2 --dist worksteal

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Run every benchmark; results go to benchmarks/results
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

readme: $(STAMP)  ## Write the generated parts of README.md
	$(BIN)/python tests/readme.py

clean:  ## Remove caches and demo output; the environment stays
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
