# Nightshift. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another wheel index for torch, for example one with CUDA builds of your driver's version.
TORCH_INDEX ?=
TORCH := torch==2.13.0
PYTEST := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
SOURCES := libs services scripts tests benchmarks examples models

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; choose one with: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch first and pinned: left to itself, a dependency would pull another build with gigabytes of CUDA.
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Make .venv with everything in it (TORCH_INDEX chooses another wheel index)

.PHONY: demo
demo: setup ## Start the plane, walk one whole improvement, train an adapter, stop (KEEP=1 leaves it running)
	$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

.PHONY: up
up: setup ## Start the plane and print its addresses; Ctrl-C stops it
	$(BIN)/nightshift up

.PHONY: test
test: check ## Everything that CI runs: checks, then all tests but the long ones
	$(PYTEST) -m 'not slow'

.PHONY: test-slow
test-slow: setup ## The long tests: 5,000-run workshops, 20 exact resumes, 100 kills, 27 million changes of the audit
	$(PYTEST) -m slow

.PHONY: chaos
chaos: setup ## Kill services at random moments, long form (CHAOS_KILLS=1000 for more)
	CHAOS_KILLS=$${CHAOS_KILLS:-300} $(PYTEST) tests/chaos --timeout 7200

.PHONY: kills
kills: setup ## kill -9 of skills, lab and trainer inside effects (SKILLS_KILLS=1000 for more)
	SKILLS_KILLS=$${SKILLS_KILLS:-200} $(PYTEST) tests/skills/test_skills_crash.py -m slow -s --timeout 7200

.PHONY: fuzz
fuzz: setup ## 10,000 sequences of calls by chance against the oracle of who may do what (FUZZ_SEQUENCES=…)
	$(PYTEST) tests/adversary/test_adversary_fuzz.py -m slow -s --timeout 7200

.PHONY: model
model: setup ## Explore the models of the protocol, long form; prints counts and counterexamples
	$(BIN)/python -m models --long

.PHONY: check
check: setup ## Lint, types, protos, drift of generated code
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/released.binpb
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python scripts/method_table.py --check
	$(BIN)/python scripts/cli_reference.py --check

.PHONY: format
format: setup ## Format the code and the protos
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/buf format --write

.PHONY: protos
protos: setup ## Generate gen/, docs/methods.md and docs/cli.md
	$(BIN)/buf lint
	$(BIN)/python scripts/generate_protos.py
	$(BIN)/python scripts/method_table.py
	$(BIN)/python scripts/cli_reference.py

.PHONY: released
released: setup ## Make the protos as they are the release that buf breaking compares with
	$(BIN)/buf build -o protos/released.binpb

.PHONY: bench
bench: setup ## Run every benchmark and write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run_all

.PHONY: lock
lock: ## Renew constraints.txt from what .venv holds
	{ echo "# One set of versions that resolve and run together; 'make lock' renews it."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt

.PHONY: clean
clean: ## Remove caches and .venv
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
