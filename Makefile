# make demo      sets everything up, learns two concepts, draws them: demo/contact_sheet.png
# make test      sets everything up, runs the quick tests; make test-all also runs the slow ones
# make docs      builds the site of docs/ into site/; make reference writes the generated pages in it
# make lint      style, types and who imports whom; make format rewrites the files in that style

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := conceptkit registry cli tests $(wildcard examples benchmarks docs/extensions)
THREADS ?= 2
WORKERS ?= 2
export OMP_NUM_THREADS ?= $(THREADS)
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
# Tests run in WORKERS processes, a file in one of them, each with one thread.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: venv test test-all lint format types reference docs demo clean
.DEFAULT_GOAL := venv

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: venv
	$(PYTEST) -m 'not slow'

test-all: venv
	$(PYTEST)

lint: venv types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy -p conceptkit
	cd .types && ../$(BIN)/lint-imports --no-logo --no-cache ../pyproject.toml

# Type checkers and import-linter see conceptkit as it is installed: registry and cli inside of it.
types:
	rm -rf .types
	mkdir -p .types/conceptkit
	cd .types/conceptkit && ln -s ../../conceptkit/* ../../registry ../../cli .

format: venv
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The pages of the reference that a program writes; a test fails when they are stale.
reference: venv
	$(BIN)/python -m conceptkit.cli.reference

# Needs no network: fonts, scripts and searching are in the site.
docs: venv types reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

demo: venv
	$(BIN)/conceptkit demo --out demo

clean:
	rm -rf .types build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
