# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMOS := wsi/demo wearable/demo webnoisy/demo recsys/demo
# Real data for the recipes and tests marked `data`; skipped, loudly, where the folder does not exist.
APPSSL_DATA ?= ../shared/data
export APPSSL_DATA := $(abspath $(APPSSL_DATA))

.PHONY: demo test check quick-tests real-quick install install-dev clean

demo: install
	@# Exit code 5: done, and the demo's damaged inputs are listed.
	cd $(CURDIR) && $(BIN)/appssl run $(DEMOS) --out demo; code=$$?; [ $$code -eq 0 ] || [ $$code -eq 5 ]

test: install-dev check quick-tests real-quick

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflows
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake --lint --snakefile Snakefile --config recipes=wearable/demo

quick-tests:
	$(BIN)/pytest -n 2 --dist loadfile

real-quick:
	$(BIN)/python tests/real_recipes.py

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,cluster]"
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) demo results .snakemake build dist
