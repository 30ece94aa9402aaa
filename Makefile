# Everything a fresh clone needs: `make demo`, `make up`, `make test`. The second run of each installs nothing.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT_FLAG := $(if $(PORT),--port $(PORT))
export HF_HUB_OFFLINE := 1

.PHONY: help install demo up test test-all lint format bench tools clean

help:
	@echo "make demo        see it work: a tiny checkpoint, two pictures, the page (ONCE=1 ends after the pictures)"
	@echo "make up          run the service on data/ (checkpoints go into data/models/)"
	@echo "make test        linters, types and tests      make test-all  slow tests too, every kill point and example"
	@echo "make bench       measure against bare parts    make format    format the code"

$(VENV)/installed: pyproject.toml deploy/constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e ".[blake3]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e ".[dev]"
	@touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/darkroom demo --data data/demo $(if $(ONCE),--once) $(PORT_FLAG)

up: $(VENV)/installed
	$(BIN)/darkroom up $(PORT_FLAG)

# The page is tested in a real browser and the drop folder with a real rsync; on Debian and Ubuntu they are installed when
# they are missing and we may.
TOOLS := chromium rsync
tools:
	@missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "the tests need$$missing: install with your package manager"; exit 1; fi; fi

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The long tests begin, on both workers, and the short ones are shared: see tests/conftest.py. `make test` tries a sample
# of kill points and examples, another one every day; `make test-all` tries all. See tests/effort.py. Tests that measure
# time run after the others, one at a time.
PARALLEL := -n 2 --dist worksteal
test: lint tools
	$(BIN)/pytest $(PARALLEL) -m "not slow and not alone"
	$(BIN)/pytest -m "alone and not slow"

test-all: lint tools
	TESTS=all $(BIN)/pytest $(PARALLEL) -m "not slow and not alone"
	TESTS=all $(BIN)/pytest -m "slow or alone"

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
