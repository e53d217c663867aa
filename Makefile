# Everything a newcomer needs: `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml hatch_build.py $(shell find native pyinit pyshim portproxy -type f \
	-not -path '*/__pycache__/*')

.PHONY: demo test lint wheels bench setup clean

setup: $(VENV)/.installed

$(VENV)/.packages: packages.txt
	sh tests/install-packages packages.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.packages $(SOURCES)
	$(BIN)/pip install --quiet '.[dev]'
	touch $@

demo: setup
	$(BIN)/pyshim demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python hatch_build.py --arch aarch64 --out build/aarch64 pyinit
	$(BIN)/python -m pytest

wheels: setup
	for arch in x86_64 aarch64; do \
		PYSHIM_ARCH=$$arch $(BIN)/python -m build --wheel --no-isolation --outdir dist . || exit 1; \
	done

bench: setup
	$(BIN)/python -m bench.lifecycle

clean:
	rm -rf build dist $(VENV)
