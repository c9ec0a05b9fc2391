# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV_INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable
DEMOS := wsi/demo wearable/demo webnoisy/demo recsys/demo
# Real data for the recipes and tests marked `data`.
APPSSL_DATA ?= ../shared/data
export APPSSL_DATA := $(abspath $(APPSSL_DATA))

.PHONY: demo test check tests quick-tests install install-dev clean

demo: install
	@# Exit code 5: done, and the demo's damaged inputs are listed.
	$(BIN)/appssl run $(DEMOS) --out demo; code=$$?; [ $$code -eq 0 ] || [ $$code -eq 5 ]

test: install-dev check tests

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflows
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake --lint --snakefile Snakefile --config recipes=wearable/demo

# Everything: kills, real servers, a browser, a wheel in an empty folder, the real recipes in their quick form (these are
# skipped, with a reason, where $(APPSSL_DATA) does not exist).
tests:
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

# Each within seconds; for work on the code.
quick-tests: install-dev check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV_INSTALL) . || $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV_INSTALL) ".[dev,cleanlab,cluster,kubernetes,recsys,remote]" || $(BIN)/python -m pip install --quiet --editable ".[dev,cleanlab,cluster,kubernetes,recsys,remote]"
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) demo results .snakemake build dist
