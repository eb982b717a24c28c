# make demo: environment, build, a trained model and its report.    make test: environment with the test needs, all checks.
# PYTHON=/path/to/python3.12 chooses another interpreter; DIGITS_OUT another folder for the demo's run.

CANDIDATES = python3 python3.14 python3.13 python3.12 python3.11
IS_NEW_ENOUGH = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

VENV = .venv
BIN = $(VENV)/bin
# Test workers: one for each processor, four at most (each takes some 2 GB with what it starts).
WORKERS ?= logical --maxprocesses 4
DIGITS_OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
NATIVE = $(wildcard native/*)
BUILT_FROM = pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)

.PHONY: demo test lint format docs cost clean

demo: $(VENV)/.installed
	$(BIN)/wholebatch train digits --target digit --test-fraction 0.2 --seed 0 --out $(DIGITS_OUT)

test: lint
	$(BIN)/pytest -n $(WORKERS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE)

docs: $(VENV)/.installed
	$(BIN)/python docs/make_commands.py

# Needs an otherwise idle machine, and kaleido with a Chrome or Chromium for the figures.
cost: $(VENV)/.installed
	$(BIN)/python docs/make_cost.py --measure

# The package is installed in place (Python sources are read where they stand), so only what the build reads asks for another
# installation.
$(VENV)/.installed: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

# It is there already, so the second line adds only what the tests need, and compiles nothing again.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -c constraints.txt 'wholebatch[test]'
	touch $@

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'wholebatch needs Python 3.11 or newer, with venv; none of $(CANDIDATES) is one.' \
	  'Install it (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@'$(PYTHON)' -c '$(IS_NEW_ENOUGH)' || { echo "wholebatch needs Python 3.11 or newer, with venv;" \
	  "$(PYTHON) is $$('$(PYTHON)' -V 2>&1). Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); echo 'No environment could be made (Debian: apt install python3-venv)' \
	  >&2; exit 1; }

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
