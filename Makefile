PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: course test test-release lab clean

course: $(VENV)/ready           ## install everything and take the tour
	$(BIN)/speechllm tour

test: $(VENV)/ready             ## all tests, at most 15 minutes on 2 cores
	$(BIN)/python -m pytest tests

test-release: $(VENV)/ready     ## everything, slow tests included
	$(BIN)/python -m pytest tests --release

lab: $(VENV)/ready              ## open the notebooks
	$(BIN)/jupyter lab nbs

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:                          ## remove what make made
	rm -rf $(VENV) build dist runs *.egg-info
