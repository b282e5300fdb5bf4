# Everything starts here. `make reproduce` and `make test` each need nothing but Python 3.11
# (or 3.12, 3.13: PYTHON=python3.12), make and git; they create .venv/ on their first run.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
# Further arguments of pip, an index with CPU builds of torch say: README, "Where things are".
PIP_ARGS ?=
SCALE ?= micro
# Notebooks executed at the same time.
JOBS ?= 2
# 1: begin again from nothing: environment, results, executed notebooks.
FRESH ?=
# Arguments handed on: ARGS="--only 01 -p name=value", ARGS="-k pair -x".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Named after what is installed and where: another lock or a moved checkout, another stamp.
STAMP := $(VENV)/installed-$(shell { cat requirements.lock pyproject.toml; pwd; } | cksum | cut -d ' ' -f 1)
# The pair inside vLLM has an environment of its own, for vLLM pins torch and transformers.
VLLM := .venv-vllm
VLLM_VERSION := 0.33.0
VLLM_STAMP := $(VLLM)/installed-$(shell { cat tests/vllm/requirements.lock tests/vllm/standins/* pyproject.toml; \
	pwd; } | cksum | cut -d ' ' -f 1)
# The newest versions within pyproject.toml's ranges, laid over .venv.
NEWEST := .venv-newest
NEWEST_STAMP := $(NEWEST)/installed-$(shell { cat requirements.lock tests/newest.lock pyproject.toml; pwd; } \
	| cksum | cut -d ' ' -f 1)
NEWEST_TESTS := tests/test_pair.py tests/test_decode.py tests/test_student.py tests/test_golden.py tests/engine
FORGET := .venv .venv-vllm .venv-newest data/cache notebooks/executed

.DEFAULT_GOAL := help
.PHONY: help setup reproduce figures book results test pytest test-long test-newest test-vllm lint models golden lab clean real

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

setup: $(STAMP)  ## create .venv with the locked packages (the others do it by themselves)

reproduce: $(STAMP)  ## execute every notebook, write figures/; what is up to date is skipped
	$(BIN)/python -m codit.cli reproduce --scale $(SCALE) --jobs $(JOBS) $(ARGS)

figures: $(STAMP)  ## draw every figure of scale full from data/results/, and the README's tables
	$(BIN)/python -m codit.cli reproduce --scale full --jobs $(JOBS) --fresh $(ARGS)
	$(BIN)/python -m codit.paper.shipped claims

book: $(STAMP)  ## a web site of the notebooks at scale full, build/book/html/index.html
	$(BIN)/python -m codit.cli reproduce --scale full --jobs $(JOBS) $(ARGS)
	$(BIN)/python book/pages.py build/book

results: $(STAMP)  ## make the tables of data/results/ again: hours; killed, it goes on
	$(BIN)/python -m codit.paper.shipped tables $(ARGS)

test: lint pytest  ## lint and tests: no network, no GPU

pytest: $(STAMP)  ## the tests alone
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

test-long: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m long $(ARGS)

test-newest: $(NEWEST_STAMP)  ## the tests of decoder, pair and student with newer versions
	$(NEWEST)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(NEWEST_TESTS) $(ARGS)

# A process for each file: an engine that ends takes its process's groups with it.
test-vllm: $(VLLM_STAMP)  ## the pair inside vLLM, which is built without its kernels for it
	ls tests/vllm/test_*.py | xargs -n 1 -P 2 $(VLLM)/bin/python -m pytest -q -W default $(ARGS)

lint: $(STAMP)  ## ruff (notebooks too), formatting, types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

models: $(STAMP)  ## train the models of data/models/ again: about 15 minutes each on one core
	$(BIN)/python -m codit.paper.shipped models --fresh $(ARGS)

real: $(STAMP)  ## fetch the model of scale real (93 MB), once: it becomes 540 MB in data/cache/
	$(BIN)/python -m codit.paper.real

golden: $(STAMP)  ## record the golden files of the tests again
	$(BIN)/python -m tests.golden

lab: $(STAMP)  ## open JupyterLab at the first notebook
	$(BIN)/python -m jupyterlab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(ARGS)

clean:  ## remove what make creates, and keep what is committed
	rm -rf $(FORGET) build codit.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find codit tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# Bytecode is left to the first import: all files would be compiled, and few are ever imported.
# Interrupted and started again, the installation goes on: the stamp is written last, and a
# package whose files were cut off (pip writes INSTALLER after them) is forgotten, so that pip
# repairs it.
$(STAMP): $(if $(filter-out 0,$(FRESH)),forget)
	@echo "Python environment in $(VENV): some 230 packages, a few minutes once"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) \
		else f"expected Python 3.11 to 3.13; got {v[0]}.{v[1]}. Name one: make PYTHON=python3.11")'
	test -x $(BIN)/python && $(BIN)/python -m pip --version || $(PYTHON) -m venv --clear $(VENV)
	@rm -rf $(VENV)/installed-* $(VENV)/lib/python*/site-packages/~*
	@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
		test -e "$$info/INSTALLER" || rm -rf "$$info"; done
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# vLLM's source archive, without compiled operators (tests/vllm/standins) and without its pins.
$(VLLM_STAMP): $(if $(filter-out 0,$(FRESH)),forget)
	@echo "vLLM's environment in $(VLLM): some 150 packages, a few minutes once"
	test -x $(VLLM)/bin/python && $(VLLM)/bin/python -m pip --version || $(PYTHON) -m venv --clear $(VLLM)
	@rm -rf $(VLLM)/installed-* $(VLLM)/lib/python*/site-packages/~*
	@for info in $(VLLM)/lib/python*/site-packages/*.dist-info; do \
		test -e "$$info/INSTALLER" || rm -rf "$$info"; done
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) \
		-r tests/vllm/requirements.lock
	VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$(VLLM_VERSION) $(VLLM)/bin/python -m pip install \
		--disable-pip-version-check --no-compile --no-deps --no-build-isolation --no-binary vllm \
		vllm==$(VLLM_VERSION)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation \
		-e . -e tests/vllm/standins
	@touch $@

$(NEWEST_STAMP): $(STAMP)
	@rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -c 'import sys, sysconfig; from pathlib import Path; \
		p = Path(sysconfig.get_path("purelib")); \
		(p / "under.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --no-compile --no-deps $(PIP_ARGS) \
		-r tests/newest.lock
	@touch $@

.PHONY: forget
forget:
	rm -rf $(FORGET)
