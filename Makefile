# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv where it is missing.
# Needs Python 3.11+ with its headers and a C++ compiler (for the dense CRF).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check install clean

install: .venv/installed

# pip, not uv: a local CPU build of torch that pip is told of is taken, and the registry's build everywhere else.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,crf,video]'
	touch $@

demo: install
	$(BIN)/python -m experiments.demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m '' --numprocesses 2 --quiet

clean:
	rm -rf .venv build *.egg-info
