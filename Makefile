# Everything runs in .venv, which the first target that needs it sets up.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin/python
STAMP := $(VENV)/.mmdge-ready
OPENCV := $(shell sed -n 's/^opencv-python-headless==/&/p' requirements.txt)
# Only what these recipes start must not see the caller's environment.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait give their core to others (docs/training.md).
export GOMP_SPINCOUNT ?= 1000
unexport VIRTUAL_ENV
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help env demo study test test-matrix lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile \
	  | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS) PYTEST_ARGS='

env: $(STAMP)  ## set up .venv (once, 2-5 minutes)

demo: $(STAMP)  ## train, evaluate and picture a small dynamic detector
	@$(BIN) tools/demo.py

study: $(STAMP)  ## go on with projects/study (many hours)
	@$(BIN) projects/study/run.py --jobs $(JOBS)
	@$(BIN) projects/study/render.py

test: $(STAMP)  ## run the tests, e.g. make test PYTEST_ARGS='-k router'
	@OMP_NUM_THREADS=1 $(BIN) -m pytest -n $(JOBS) --dist loadfile \
	  --no-loadscope-reorder $(PYTEST_ARGS)

test-matrix:  ## run the tests in every environment (some 2 hours, 28 GB)
	@$(PYTHON) tests/matrix/run.py --jobs $(JOBS)

lint: $(STAMP)  ## check style, change nothing
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .

format: $(STAMP)  ## fix style in place
	@$(BIN) -m ruff check --fix .
	@$(BIN) -m ruff format .

clean:  ## remove .venv and caches, keep data and work_dirs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is touched last: an interrupted set-up is taken up again.
$(STAMP): requirements.txt setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo 'error: no $(PYTHON) found; install Python 3.10 or later, or' \
	    'name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), mmdge needs" \
	    'Python 3.10 or later; name one: make PYTHON=python3.11' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo 'error: $(PYTHON) has no venv module; install it (Debian and' \
	    'Ubuntu: apt install python3-venv) and run make again' >&2; exit 1; }
	@echo 'mmdge: setting up $(VENV), once, from requirements.txt;' \
	  'downloads about 3 GB and takes 2-5 minutes'
	@$(BIN) -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN) -m pip install --progress-bar on -r requirements.txt
	@echo 'mmdge: keeping the headless OpenCV, which needs no libGL'
	@$(BIN) -m pip install -q --force-reinstall --no-deps $(OPENCV)
	@$(BIN) -m pip install -q --no-deps -e .
	@$(BIN) -c 'import cv2, mmcv, mmengine, torch; print("mmdge: ready, torch", \
	  torch.__version__, "on", torch.cuda.is_available() and "GPU" or "CPU")'
	@touch $@
