# Two commands for a fresh machine: `make demo` and `make test`. Both create .venv if it is missing.
# They need Python 3.11+; `make test` also its headers and a C++ compiler (for the dense CRF).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz cluster bench check types links install clean

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

install: .venv/installed

# pip, not uv: pip takes a local CPU build of torch where it is configured, and otherwise the build of the package index.
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

# The rooms below one import name, as in the installed package, for mypy and editors, which do not follow package-dir.
links:
	rm -rf build/links && mkdir -p build/links/structseg
	ln -s $(CURDIR)/structseg/* $(CURDIR)/losses $(CURDIR)/datamodules $(CURDIR)/lightning_modules build/links/structseg/

types: install links
	$(BIN)/mypy

check: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

PYTEST := $(BIN)/python -m pytest -m ''

# With a fixed part of the damaged inputs, and two scenarios on a SLURM cluster where one can be started; all of them below.
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
