# Two commands: `make demo` and `make test`. Both need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

# A test run starts hundreds of processes: without it each of them would compile every module it loads.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check format lock docs bench clean help

help:
	@echo "make demo [ARGS=--headless]  real Kafka, real processes, real messages; decisions get better in about two minutes"
	@echo "make test [ARGS='-k join']   every test, on a real broker of its own"
	@echo "make check                   format, lint, types, import rules, generated docs"
	@echo "make format lock docs bench clean"

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"headrace needs Python 3.11 or newer, found {v.major}.{v.minor}: make PYTHON=/path/to/python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: install the venv module of your Python (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing the locked packages into $(VENV) (torch is large: a minute or so, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.uv.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock requirements.uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@$(BIN)/headrace demo $(ARGS)

test: $(READY)
	@$(BIN)/headrace broker prepare
	@$(BIN)/python -m pytest -n 4 $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m deploy.reference --check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m deploy.reference

bench: $(READY)
	$(BIN)/python -m benchmarks

lock: $(READY)
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --all-extras --quiet --custom-compile-command "make lock" -o requirements.lock pyproject.toml
	echo uv | $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --quiet --custom-compile-command "make lock" -o requirements.uv.lock -

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
