# Two commands on a fresh machine: `make quickstart` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test suites clusters test-long check setup schema docs bench-overhead bench-losses bench-metrics clean

quickstart: $(VENV)/.installed
	$(BIN)/bench run suites/quickstart.yaml

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not suites and not slurm and not ray"

# Every published comparison end to end on a phantom of its data set, some minutes.
suites: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_suites.py

# Cells on a SLURM and on a Ray cluster of this machine's own, with processes and nodes that are killed.
clusters: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/backends -m "(slurm or ray) and not slow"

test-long: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 BENCH_HYPOTHESIS=random $(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-overhead: $(VENV)/.installed
	$(BIN)/python benchmarks/overhead.py

bench-losses: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/losses.py

bench-metrics: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/metrics.py

setup: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bench needs Python 3.11 or later, $(PYTHON) is older; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml tests/oracles.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/oracles.txt
	@touch $@ $(VENV)/.installed

# The reference pages of the losses: agreement with other implementations, checks, behaviour, text.
docs: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 BENCH_AGREEMENT=$(CURDIR)/docs/losses/agreement.json $(BIN)/python -m pytest -q tests/losses
	OMP_NUM_THREADS=1 $(BIN)/python -m harness.reference --measure

schema: $(VENV)/.installed
	$(BIN)/python -m harness.schema

clean:
	rm -rf $(VENV) build dist *.egg-info
