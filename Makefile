# Everything a newcomer needs: `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml hatch_build.py $(shell find native pyinit pyshim portproxy -type f \
	-not -path '*/__pycache__/*')

# Some ways to become root leave these out, and Debian has runc there.
export PATH := $(PATH):/usr/sbin:/sbin

# How long `make soak` takes, and what decides what happens in it.
MINUTES ?= 10
SEED ?= 1
# And `make fuzz`.
SECONDS ?= 600

WORKERS ?= 2
# How often a test that fails is run again. Both outcomes are printed, and tests/conftest.py says
# how many may need it.
RERUNS ?= 1

.PHONY: demo test compat soak fuzz lint wheels bench setup clean

setup: $(VENV)/.installed

$(VENV)/.packages: packages.txt tests/install-packages
	sh tests/install-packages packages.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.test-packages: tests/packages.txt $(VENV)/.packages
	sh tests/install-packages packages.txt tests/packages.txt
	touch $@

$(VENV)/.bench-packages: bench/packages.txt $(VENV)/.test-packages
	sh tests/install-packages packages.txt tests/packages.txt bench/packages.txt
	touch $@

# What a build requires stays here: with an environment of its own for each build, zig would also
# have a libc to build each time.
$(VENV)/.tools: pyproject.toml $(VENV)/.packages
	sed -n '/^requires = /{s/.*\[//;s/\].*//;s/[" ]//g;s/,/\n/g;p}' pyproject.toml >$@.txt
	$(BIN)/pip install --quiet --requirement $@.txt
	touch $@

$(VENV)/.bench-tools: pyproject.toml $(VENV)/.packages
	sed -n '/^bench = /{s/.*\[//;s/\].*//;s/[" ]//g;s/,/\n/g;p}' pyproject.toml >$@.txt
	$(BIN)/pip install --quiet --requirement $@.txt
	touch $@

$(VENV)/.installed: $(VENV)/.tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation '.[dev]'
	touch $@

demo: setup
	$(BIN)/pyshim demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/.test-packages
	$(BIN)/python hatch_build.py --arch aarch64 --out build/aarch64 pyinit
	sh tests/in-memory $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--reruns $(RERUNS)

# All scenarios on all daemons; the newer ones are fetched once, into $$PYSHIM_PEERS or ~/.cache.
compat: setup $(VENV)/.test-packages
	PYSHIM_COMPAT=all $(BIN)/python -m pytest tests/compat

# Churn and faults at random; at the end nothing may be lost or left over.
soak: setup $(VENV)/.test-packages
	$(BIN)/python -m tests.soak --minutes="$(MINUTES)" --seed="$(SEED)"

# The fuzzers of the native decoders; what they find lies in build/fuzz/found.
fuzz: setup $(VENV)/.test-packages
	$(BIN)/python -m tests.fuzz.run -- "$(SECONDS)"

wheels: setup
	for arch in x86_64 aarch64; do \
		PYSHIM_ARCH=$$arch $(BIN)/python -m build --wheel --no-isolation --outdir dist . || exit 1; \
	done

bench: setup $(VENV)/.bench-packages $(VENV)/.bench-tools
	$(BIN)/python -m bench.shim
	$(BIN)/python -m bench.relay
	$(BIN)/python -m bench.tool
	$(BIN)/python -m bench.init

clean:
	rm -rf build dist $(VENV)
