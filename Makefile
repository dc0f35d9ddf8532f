# `make demo` and `make test` set up what they need in .venv on a fresh machine; later calls start at once.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Python keeps what it compiled, as by default: without, torch, transformers and vLLM are compiled in every Ray process,
# twice the processor time of loading them. uv compiles nothing when it installs.
unexport PYTHONDONTWRITEBYTECODE

# Where pip is told to find wheels, uv looks too. Elsewhere the CPU build of torch comes from PyTorch's own index.
UV_SOURCES := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)",UV_TORCH_BACKEND=cpu)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast chaos lint format bench recipes clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install the project with its CPU and development extras into .venv

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(UV_SOURCES) $(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[cpu,dev]'
	@touch $@

demo: $(STAMP) ## SFT -> reward model -> PPO on Ray, on this machine's CPU
	$(BIN)/rlhf-ray demo

# A test that lost an actor gets one more try, and pytest says so; any other failure, an actor's own error too, counts.
test: lint ## Everything CI runs: style, types, import contracts, all tests that need no GPU
	$(BIN)/pytest -m 'not gpu and not recipe and not chaos' --reruns 1 --only-rerun 'InfrastructureError.* was lost'

test-fast: $(STAMP) ## The unit tests: no Ray, no vLLM
	$(BIN)/pytest -m unit

chaos: $(STAMP) ## Whole runs in which every kind of actor, the driver or a node dies at every kind of moment (an hour)
	$(BIN)/pytest -m chaos

lint: $(STAMP) ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## All benchmarks, one after the other; tables on the console, JSON in benchmarks/results
	$(BIN)/python benchmarks

recipes: $(STAMP) ## Every recipe's tiny variant, end to end; what each stage gains (SEEDS=3 for errors over seeds)
	$(BIN)/pytest -m recipe
	$(BIN)/python benchmarks/recipe_gains.py --seeds $(or $(SEEDS),1)

clean: ## Remove caches (not .venv, not runs)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis benchmarks/results dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
