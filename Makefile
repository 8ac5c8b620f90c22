# Everything a newcomer needs: `make demo`, `make test`. The rest is for contributors.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests mostly wait for servers: more processes than cores pay.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile

# Tests and demo start Python by the thousand: compiled modules save a second or two each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check soak versions lint types conformance bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP) ## make the environment in .venv

$(STAMP): pyproject.toml uv.lock scripts/setup scripts/dqlite
	@scripts/setup
	@touch $@

demo: $(STAMP) ## move, verify, switch and split a live database on this machine (KEEP=1 leaves it up)
	@$(BIN)/tidegate demo $(if $(KEEP),--keep)

test: $(STAMP) lint types ## everything that must hold before a change ships
	@$(PYTEST) $(ARGS)

check: $(STAMP) lint types ## the quick half of `make test`
	@$(PYTEST) -m "not slow" $(ARGS)

soak: $(STAMP) ## long runs with random faults (SEED=number, MINUTES=10 for each, ARGS=files or options)
	@$(BIN)/python -m pytest -m soak $(ARGS)

versions: $(STAMP) ## the data path on each PostgreSQL from 15 to 19 (VERSIONS="15 16:18" for some; a:b is source:target)
	@scripts/versions $(VERSIONS)

lint: $(STAMP) ## style
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .

types: $(STAMP) ## types
	@$(BIN)/mypy --no-error-summary

conformance: $(STAMP) ## only the behaviour cases (TIDEGATE_CASES=folder for others)
	@$(BIN)/python -m pytest tests/conformance $(ARGS)

bench: $(STAMP) ## measure against the peers (ROW=name for one row, MINUTES=10 for ROW=idle)
	@UV_PROJECT_ENVIRONMENT=$(VENV) .cache/uv/bin/uv sync -q --frozen --group bench
	@$(if $(MINUTES),MINUTES=$(MINUTES)) $(BIN)/python bench/run.py $(if $(ROW),--row $(ROW))

clean: ## remove the environment and what was built
	rm -rf $(VENV) .cache build .mypy_cache .ruff_cache .pytest_cache
