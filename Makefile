# One command each, from a fresh clone on:
#
#   make train      environment, build, install, then train the example network on two ranks
#   make train-llm  the same with the language model, on the sources of Python's standard library
#   make test       the same environment, then lint and every quick test, WORKERS=2 files at a time
#   make test-full  the long sweeps too, WORKERS files at a time; writes build/test-report.xml and a page of it, .md
#   make test-repeat  each kind of test with many processes, TIMES=50 times, half of them with all cores busy
#   make soak       random programs against numpy: MINUTES=10, SEED=… and RANKS=… to repeat one
#   make soak-faults  N=10000 programs in which a rank fails: detection times, and what went wrong
#   make fuzz       what other processes may write into shared memory, MINUTES=10 long; needs clang
#   make sanitize   ranks as threads under ThreadSanitizer and AddressSanitizer, with races planted
#   make lint | format | build | clean
#
# make PYTHON=python3.12 …   another Python, in an environment of its own (.venv-python3.12)
# make RANKS=4 train         more ranks; TRAIN_OPTIONS="--set train.epochs=1" is passed on
#
# pip's own settings and environment variables (an index, a mirror, a cache) are honoured.

PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
RANKS ?= 2
TIMES ?= 50
WORKERS ?= 2
MINUTES ?= 10
N ?= 10000
PACKAGES := collectives transports trainers launch

PY := $(VENV)/bin/python
GPU_PYTHON ?= python3
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := $(wildcard transports/native/*.cpp transports/native/*.hpp)
DRIVERS := $(wildcard $(foreach kind,fuzz sanitize,tests/$(kind)/*.cpp tests/$(kind)/*.hpp) \
  tests/harness/*.hpp transports/cuda_ipc/*.cu transports/cuda_ipc/*.cuh)
# A package that comes or goes changes what an editable install maps.
ROOTS := $(wildcard $(PACKAGES:%=%/__init__.py))
# One sweep of the long run takes minutes, so that a hang is told later there.
LONG := -o timeout=900 -o faulthandler_timeout=1800
LINTED := $(PACKAGES) tests examples tools

.PHONY: train train-llm test test-full test-repeat gpu-check soak soak-faults fuzz sanitize lint format build clean preflight
.DELETE_ON_ERROR:

train: build
	$(VENV)/bin/collectives train configs/espcn.yaml -n $(RANKS) $(TRAIN_OPTIONS)

train-llm: build
	$(VENV)/bin/collectives train configs/llm_small.yaml -n $(RANKS) $(TRAIN_OPTIONS)

# A file is a worker's: what ranks of one start have shared stays together.
test: lint
	$(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile

test-full: lint
	@mkdir -p build
	$(PY) -m pytest --full --numprocesses $(WORKERS) --dist loadfile $(LONG) --junitxml=build/test-report.xml; status=$$?; \
	  $(PY) tools/test_report.py build/test-report.xml > build/test-report.md; exit $$status

test-repeat: build
	$(PY) tools/repeat_tests.py --times $(TIMES)

# RANKS has a default that is train's: only one that is given counts here.
soak: build
	PYTHONPATH=tests $(PY) -m soak --minutes $(MINUTES) $(SEED:%=--seed %) \
	  $(if $(filter-out file undefined,$(origin RANKS)),--ranks $(RANKS)) $(SOAK_OPTIONS)

# On a machine without a network, hence without our environment: see CONTRIBUTING.
gpu-check:
	$(GPU_PYTHON) tools/gpu_check.py $(GPU_CHECK_OPTIONS)

soak-faults: build
	PYTHONPATH=tests $(PY) -m soak.faults --jobs $(N) --report build/soak-faults.md $(SEED:%=--seed %)
# Neither needs the environment: a compiler and any Python.
fuzz:
	$(PYTHON) tools/fuzz.py --minutes $(MINUTES)

sanitize:
	$(PYTHON) tools/sanitize.py

lint: build
	$(VENV)/bin/ruff check $(wildcard $(LINTED))
	$(VENV)/bin/ruff format --check $(wildcard $(LINTED))
	$(VENV)/bin/clang-format --dry-run -Werror $(NATIVE) $(DRIVERS)
	$(VENV)/bin/mypy

format: build
	$(VENV)/bin/ruff check --fix $(wildcard $(LINTED))
	$(VENV)/bin/ruff format $(wildcard $(LINTED))
	$(VENV)/bin/clang-format -i $(NATIVE) $(DRIVERS)

build: $(VENV)/.installed

clean:
	rm -rf build dist .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

preflight:
	@PYTHON="$(PYTHON)" sh tools/preflight.sh

# What takes minutes and changes rarely: the environment and torch. torch goes in alone and
# pinned: left to the open range of the package, pip may bring gigabytes of another build of it.
$(VENV)/.environment: constraints.txt tools/preflight.sh
	@PYTHON="$(PYTHON)" sh tools/preflight.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt scikit-build-core nanobind cmake ninja numpy
	$(PIP) install --constraint constraints.txt torch
	@touch $@

# Python edits are live. An edit in C++ comes here: only what changed is compiled again, since
# the build folder stays.
$(VENV)/.installed: $(VENV)/.environment pyproject.toml CMakeLists.txt $(ROOTS) $(NATIVE) transports/native
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation \
	  --config-settings=build-dir=build/{wheel_tag} --editable '.[train,dev,mpi]'
	@touch $@
