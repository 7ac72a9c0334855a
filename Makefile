# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv where it is missing.
# Need Python 3.11+; `make test` also its headers and a C++ compiler (for the dense CRF).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz cluster bench check types links install clean

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

install: .venv/installed

# pip, not uv: a local CPU build of torch that pip is told of is taken, and the registry's build everywhere else.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) '.[dev,crf,coco,tensorboard,video,packaged]'
	touch $@ .venv/demo-installed

.venv/demo-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) .
	touch $@

demo: .venv/demo-installed
	$(BIN)/structseg demo

# The rooms below one name, as in the installed package: mypy and editors do not see through package-dir.
links:
	rm -rf build/links && mkdir -p build/links/structseg
	ln -s $(CURDIR)/structseg/* $(CURDIR)/losses $(CURDIR)/datamodules $(CURDIR)/lightning_modules build/links/structseg/

types: install links
	$(BIN)/mypy

check: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

PYTEST := $(BIN)/python -m pytest -m ''

# A fixed part of the damaged inputs and two scenarios on a SLURM cluster, where one starts; all of both below.
test: check
	$(PYTEST) --numprocesses 2 --dist worksteal --quiet

fuzz: install
	$(PYTEST) --numprocesses 2 --quiet --all-of fuzz tests/fuzz

cluster: install
	$(PYTEST) --quiet --all-of cluster tests/slurm

bench: install
	$(PYTEST) --quiet --benchmark-enable tests/benchmarks

clean:
	rm -rf .venv build *.egg-info
