# Python 3.11 or newer and make are all that this needs: every target sets up .venv by itself, once.
#
#   make demo     the whole way on CartPole: record, fit, dream, train, transfer
#   make test     style, types, the import contract, the tests but the slow ones: what CI runs
#   make test-all the same with the slow tests
#   make help     the other targets
#
# PYTHON=python3.12 chooses an interpreter.  TORCH=... chooses the build of torch: anything that
# `pip install` takes, options included, for instance a wheel on disk or a CPU-only index:
#   make demo TORCH="torch==2.13.0 --index-url <the index of the build that you want>"
# JOBS=4 runs the tests in four processes.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,\
            $(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))) python3)
TORCH  ?= $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
JOBS   ?= 2
MARKS  := -m "not slow"
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs gpu help demo test test-all test-avx2 lint format types contract tests hooks wheel bench freeze clean distclean

help:
	@echo "make demo       the whole way on CartPole, with a table and a picture at the end"
	@echo "make test       lint, types, contract and tests: what CI runs"
	@echo "make test-all   the same with the slow tests"
	@echo "make test-avx2  the tests as on a processor without AVX-512"
	@echo "make docs       build the documentation into site/; 'make docs ARGS=serve' serves it"
	@echo "make lint       ruff, check and format"
	@echo "make types      mypy"
	@echo "make contract   who may import whom"
	@echo "make tests      pytest alone; ARGS='-k data' chooses"
	@echo "make format     mend what ruff can mend"
	@echo "make hooks      run the same checks before each commit"
	@echo "make wheel      build the wheel and the source archive into dist/"
	@echo "make gpu        all that a machine with CUDA can tell, in under 9 minutes, into gpu.json"
	@echo "make bench      every benchmark; ARGS=--quick for a short look"
	@echo "make clean      remove what was built; make distclean also removes .venv"

# ---------------------------------------------------------------- setting up
# Three stamps, each leaning on the one before, so that `make -j demo test` installs once and in order.

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "dreamgym needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)."; \
	  echo "Install a newer one and say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module; install your system's package for it (often named python3-venv)."; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) (once; torch is the large part)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt $(TORCH)
	@$(PIP) -c constraints.txt hatchling
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "Installing dreamgym[demo]"
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing dreamgym[dev]"
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "Installing dreamgym[docs]"
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

# ---------------------------------------------------------------- using it

demo: $(VENV)/.demo
	@$(BIN)/python examples/demo.py $(ARGS)

test: lint types contract tests

test-all: MARKS :=
test-all: lint types contract tests

# PyTorch and oneDNN are told to use AVX2 at most, so that what falls back on such a processor does.
test-avx2: export ATEN_CPU_CAPABILITY := avx2
test-avx2: export ONEDNN_MAX_CPU_ISA := AVX2
test-avx2: tests

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev
	@$(BIN)/mypy

contract: $(VENV)/.dev
	@$(BIN)/lint-imports

tests: $(VENV)/.dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --durations 10 $(MARKS) $(ARGS)

docs: $(VENV)/.docs
	@$(BIN)/mkdocs $(if $(ARGS),$(ARGS),build --strict)

hooks: $(VENV)/.dev
	@$(BIN)/pre-commit install

wheel: $(VENV)/.dev
	@$(BIN)/python -m build --no-isolation

bench: $(VENV)/.dev
	@set -e; for each in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "$$each"; $(BIN)/python $$each $(ARGS); done

# On a machine without network: `python benchmarks/gpu.py --needs` says which wheels to carry there.
gpu: $(VENV)/.dev
	@$(BIN)/python benchmarks/gpu.py --json gpu.json $(ARGS)

freeze: $(VENV)/.dev
	@$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | tr '[:upper:]_' '[:lower:]-' \
	  | sed 's/+[a-z0-9.]*$$//'

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
