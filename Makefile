# Everything runs in .venv, which the first target that needs it makes. Needs Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs
# Two processes, each of which makes the small runs and artifacts that tests share: one waits for servers half of its time.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-fast lint format bench bench-gpu bench-check bench-data clean

help:
	@echo "make quickstart  the whole line on synthetic head CT: train, calibrate, export, serve, report"
	@echo "make test        the test suite"
	@echo "make test-slow   what takes longer: fault and mutant campaigns, quickstarts, the README's commands"
	@echo "make test-fast   without slow tests and servers"
	@echo "make lint        ruff, mypy --strict, import-linter"
	@echo "make bench       every engine over every model, and where the time of a request goes: docs/benchmarks.md"
	@echo "make bench-gpu   the same on an NVIDIA GPU: docs/gpu/benchmarks.md; fails where there is none, saying what is missing"
	@echo "make bench-check fails where an engine that serves became slower than docs/benchmarks/ratios.json says"
	@echo "make bench-data  decode + prepare and epoch time against their floors"
	@echo "make clean       remove .venv, caches and runs"

$(VENV)/.user: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

quickstart: $(VENV)/.user
	$(BIN)/medad-serve quickstart --runs $(RUNS)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow and not server"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/medad-serve bench --all --seconds 2 --runs $(RUNS)/bench
	$(BIN)/medad-serve bench --http $(RUNS)/bench/ae --litserve --seconds 10 --rounds 3 --out docs/serving-benchmark

bench-gpu: $(VENV)/.dev
	$(BIN)/medad-serve bench --all --device cuda --runs $(RUNS)/bench --docs docs/gpu

bench-check: $(VENV)/.dev
	$(BIN)/medad-serve bench --check --runs $(RUNS)/bench

bench-data: $(VENV)/.dev
	$(BIN)/medad-serve bench --io --epoch

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis $(RUNS)
