# `make enhance` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Made anew when the dependencies change.
STAMP := $(VENV)/.installed
PHOTOS ?= doodl/pocket/samples
OUT ?= runs/samples-doodl

.PHONY: enhance test check lint types test-slow bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,cluster,schedule]'
	touch $@

enhance: $(STAMP)
	$(BIN)/doodl-batch enhance $(PHOTOS) --out $(OUT) --direction up
	@echo "Open $(OUT)/report/index.html to look at the result."

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
