# `make help` lists the targets. Every target sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp carries the checksum of the pins: changed pins, or an install that was cut short, rebuild.
STAMP := $(VENV)/installed-$(firstword $(shell cksum constraints.txt))
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test ui bench soak docs lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

run: $(STAMP)  ## run the default experiment; pass overrides as ARGS="alpha=0.25 seed=1"
	@$(BIN)/python train.py $(ARGS)

test: $(STAMP)  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

ui: $(STAMP)  ## compare the runs in the browser, at http://127.0.0.1:5000
	@echo "Open http://127.0.0.1:5000 when it says that it is running; Ctrl-C ends it."
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false PYTHONWARNINGS=ignore $(BIN)/mlflow ui --workers 1 --host 127.0.0.1 --backend-store-uri "sqlite:///$(CURDIR)/mlruns/mlflow.db" $(ARGS)

bench: $(STAMP)  ## benchmarks, each as a ratio to its peer measured in the same run
	@$(BIN)/python scripts/bench.py $(ARGS)

soak: $(STAMP)  ## many jobs and many faults, for an hour; parts of it as ARGS="--only starts"
	@$(BIN)/python tests/soak.py $(ARGS)

docs: $(STAMP)  ## config.md, experiments.md and the list of modules in docs/, from comments and docstrings
	@$(BIN)/python scripts/config_reference.py
	@$(BIN)/python scripts/layout_reference.py

lock: $(STAMP)  ## pin everything that pyproject.toml asks for in constraints.txt
	@$(PIP) install --dry-run --ignore-installed --quiet --report pins.json '.[dev,slurm]'
	@$(BIN)/python -c "import json; pins = [p['metadata'] for p in json.load(open('pins.json'))['install']]; \
	  print(*sorted(p['name'].lower() + '==' + p['version'] for p in pins if p['name'] != 'paramtransfer'), sep='\n')" > constraints.new
	@mv constraints.new constraints.txt && rm pins.json

clean:  ## remove the environment; runs stay
	rm -rf $(VENV)

$(STAMP):
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'paramtransfer needs Python 3.11 or newer: make PYTHON=/path/to/python3.11')"
	@echo "Installing the pinned packages into $(VENV) (a few minutes, about 6 GB on Linux)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --quiet --progress-bar on -c constraints.txt setuptools
	@$(PIP) install --quiet --progress-bar on -c constraints.txt --no-build-isolation -e '.[dev,slurm]'
	@touch $@
