# Needs Python >= 3.11 with pip and venv, and make. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
EXTRAS := openmm,hub,docs,dev
SOURCES := snnp plugins/ase/snnp_ase plugins/openmm/snnp_openmm

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs instructions sanitize

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) $(KERNELS)  ## create .venv and install snnp with everything that demo, tests and docs need

# torch comes first: its wheel is the largest, and a failure there should be the first thing seen.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "snnp needs Python >= 3.11; set PYTHON, for example: make PYTHON=python3.12 setup" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes, PyTorch is large."
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# The installation has compiled the kernels; this follows changes of their sources.
$(KERNELS): $(INSTALLED) $(wildcard snnp/kernels/src/*) snnp/kernels/build.py
	$(BIN)/python snnp/kernels/build.py --optional
	@touch $@

demo: $(INSTALLED) $(KERNELS)  ## one picosecond of silicon at 600 K with a bundled model; trajectory and picture go to demo/
	@mkdir -p demo
	$(BIN)/snnp md snnp-si diamond:Si:3x3x3 --ensemble nvt --temperature 600 --friction 10 --steps 500 --dt 2 \
	  --every 10 --trajectory demo/si.xyz --log demo/si.csv --overwrite
	@echo "Done: 216 silicon atoms, 1 ps at 600 K with the bundled model snnp-si. Written:" && ls -1 demo/si*

test: $(KERNELS) lint docs  ## lint, docs and the tests, as the continuous integration runs them
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## ruff, mypy, and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## build the documentation into docs/_build, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

instructions: $(KERNELS)  ## count the kernels' instructions with valgrind; fails if they grew by over 10 %
	$(BIN)/python tests/native/instructions.py

sanitize: $(KERNELS)  ## random cases through kernels built with address, undefined-behaviour and thread sanitizers
	$(BIN)/python tests/native/sanitize.py address
	$(BIN)/python tests/native/sanitize.py thread
