# Needs Python >= 3.11 with pip and venv, and make. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
INSTALLED := $(VENV)/.installed
OWN_KERNELS := $(VENV)/.kernels-own
KERNELS := $(VENV)/.kernels
EXTRAS := openmm,hub,docs,dev
SOURCES := snnp plugins/ase/snnp_ase plugins/lammps/snnp_lammps plugins/openmm/snnp_openmm
KERNEL_SOURCES := $(wildcard snnp/kernels/src/*) snnp/kernels/build.py
# Bytecode is written when a module is first imported: most of the packages' modules never are. The kernels have targets
# of their own here, so pip need not compile them.
PIP := SNNP_KERNELS=off $(BIN)/python -m pip install --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format pages docs instructions sanitize

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) $(KERNELS)  ## create .venv and install snnp with everything that demo, tests and docs need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "snnp needs Python >= 3.11; set PYTHON, for example: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing snnp into $(VENV) with what it needs; PyTorch is the largest part."
	$(PIP) -e .
	@touch $@

$(INSTALLED): $(CORE)
	@echo "Adding what plugins, tests and documentation need."
	$(PIP) -q -e ".[$(EXTRAS)]"
	@touch $@

# Without the environment, so that it can be done while pip downloads.
$(OWN_KERNELS): $(KERNEL_SOURCES)
	@mkdir -p $(VENV)
	$(PYTHON) snnp/kernels/build.py --optional --own
	@touch $@

$(KERNELS): $(INSTALLED) $(KERNEL_SOURCES)
	$(BIN)/python snnp/kernels/build.py --optional
	@touch $(OWN_KERNELS) $@

demo:  ## one picosecond of silicon at 600 K with a bundled model; trajectory and picture go to demo/
	@$(MAKE) --no-print-directory -j2 $(CORE) $(OWN_KERNELS)
	@mkdir -p demo
	$(BIN)/snnp md snnp-si diamond:Si:3x3x3 --ensemble nvt --temperature 600 --friction 10 --steps 500 --dt 2 \
	  --every 10 --trajectory demo/si.xyz --log demo/si.csv --overwrite
	@echo "Done: 216 silicon atoms, 1 ps at 600 K with the bundled model snnp-si. Written:" && ls -1 demo/si*

# Tests that need reference data are skipped where this is no folder.
test: export SNNP_DATA := $(abspath $(or $(SNNP_DATA),../shared/data))
test: $(KERNELS) lint docs  ## lint, docs and the tests, as the continuous integration runs them
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## ruff, mypy, and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pages: $(INSTALLED)  ## rewrite the parts of docs/ that come from the code: help texts, keys, tables of models and data
	$(BIN)/python docs/generate.py

docs: $(INSTALLED)  ## build the documentation into docs/_build, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

instructions: $(KERNELS)  ## count the kernels' instructions with valgrind; fails if they grew by over 10 %
	$(BIN)/python tests/native/instructions.py

sanitize: $(KERNELS)  ## random cases through kernels built with address, undefined-behaviour and thread sanitizers
	$(BIN)/python tests/native/sanitize.py address
	$(BIN)/python tests/native/sanitize.py thread
