# Needs only python3 (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
NEXT := hydra-core omegaconf lightning pytorch-lightning optuna
LOGDIR ?= outputs
PORT ?= 6006
ROOT ?= data/cifar10-jpeg

.DEFAULT_GOAL := help
.PHONY: help install train bench gpu-check test test-slow test-faults test-cluster test-next lint format types audit tensorboard results results-runs constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@printf '\n  make train ARGS="model=resnet50 data=cifar10"   passes overrides on\n'

install: $(READY) ## Create .venv and install everything, at the versions of constraints.txt

# uv where it is (or can be had from pip), else pip alone. Where Python may not keep its bytecode
# (containers), it is made here once: else each start compiles torch anew, for ten seconds.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.12"; exit 1; }
	@set -e; \
	uv=$$(command -v uv || true); \
	if [ -n "$$uv" ]; then \
	  [ -x $(BIN)/python ] || "$$uv" venv -q --python "$$(command -v $(PYTHON))" .venv; \
	else \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || \
	    { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment; install uv, or your system's package python3-venv"; exit 1; }; \
	  $(BIN)/python -m pip install -q uv && uv=$(BIN)/uv || echo "uv is not to be had; pip does the work"; \
	fi; \
	if [ -n "$$uv" ]; then \
	  "$$uv" pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	fi; \
	if [ -n "$$PYTHONDONTWRITEBYTECODE" ]; then \
	  $(BIN)/python -m compileall -q -j 0 .venv/lib src >.venv/compiled.txt || true; \
	fi
	@$(BIN)/python -m resnet_lab.run.gpu
	@touch $@

train: $(READY) ## Train ResNet-20 on handwritten digits (about a minute on two cores)
	@$(BIN)/python train.py $(ARGS)

bench: $(READY) ## Measure the speed on this machine: ARGS="--only training,sweep --rounds 3 --out DIR"
	@$(BIN)/python -m benchmarks $(ARGS)

gpu-check: $(READY) ## Try everything on a new GPU, in eight minutes: ARGS="--short --out DIR"
	@$(BIN)/python -m benchmarks.gpu_check $(ARGS)

test: $(READY) ## Run the tests, two side by side
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-slow: $(READY) ## Run the long tests, which `make test` leaves out
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow $(ARGS)

test-faults: $(READY) ## Kill, freeze, fill and break things for 40 minutes; prints the figures
	@$(BIN)/python -m pytest -q -m faults $(ARGS)

test-cluster: $(READY) ## Sweep and requeue on a SLURM of one node, which it starts (root, Debian)
	@$(BIN)/python -m pytest -q -m cluster $(ARGS)

# The bounds of pyproject.toml and the pins of constraints.txt are lifted for NEXT alone.
test-next: $(READY) ## Run the tests with what comes next of Hydra, Lightning and Optuna (needs uv)
	@set -e; uv=$$(command -v uv || echo $(BIN)/uv); mkdir -p .venv-next; \
	[ -x .venv-next/bin/python ] || "$$uv" venv -q --allow-existing --python $(BIN)/python .venv-next; \
	printf '%s\n' $(NEXT) >.venv-next/overrides.txt; \
	grep -vE "^($$(echo $(NEXT) | tr ' ' '|'))==" constraints.txt >.venv-next/constraints.txt; \
	"$$uv" pip install -q --upgrade --python .venv-next/bin/python $(NEXT:%=--prerelease-package %=allow) \
	  -c .venv-next/constraints.txt --overrides .venv-next/overrides.txt -e '.[dev]'; \
	"$$uv" pip freeze -q --python .venv-next/bin/python | grep -E "^($$(echo $(NEXT) | tr ' ' '|'))=="; \
	OMP_NUM_THREADS=1 .venv-next/bin/python -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: $(READY) ## Check style, format and which module may import which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

format: $(READY) ## Put the code into format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(READY) ## Check types
	@$(BIN)/mypy

audit: ## Report known vulnerabilities of the pinned versions (needs uv and a network)
	@$(PYTHON) .ci/audit

tensorboard: $(READY) ## Open TensorBoard on localhost: LOGDIR=outputs PORT=6006
	@$(BIN)/tensorboard --logdir $(LOGDIR) --host localhost --port $(PORT)

results: $(READY) ## Rebuild docs/results.md from the result files beside it, in seconds
	@$(BIN)/python docs/results/build.py

results-runs: $(READY) ## Run what is missing of docs/results.md: ROOT=data/cifar10-jpeg ONLY="depth augment" (days on a CPU)
	@PATH="$(abspath $(BIN)):$$PATH" ROOT=$(ROOT) sh docs/results/run.sh $(ONLY)

constraints: ## Pin the newest versions in constraints.txt (needs uv)
	uv pip compile -q --upgrade --universal --extra dev --no-annotate --no-header --no-emit-index-url \
	  --no-emit-find-links pyproject.toml -o constraints.txt

clean: ## Remove .venv and caches; runs stay
	rm -rf .venv .venv-next .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
