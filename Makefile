# Paths are relative throughout, so that a checkout's path may hold spaces.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LABEL_STAMP := .venv-label/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv label demo bundles test test-slow test-label test-all test-versions lint format wheel clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## virtual environment in .venv with the tested versions

# The stamp is written last: an interrupted call leaves none, and the next one resumes. The interpreter is looked at
# first: pip would end in pages about versions.
$(STAMP): constraints.txt setup.cfg setup.py pyproject.toml
	@rm -f $(STAMP)
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then echo "Making $(VENV) ..."; \
		$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo \
			"Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is not one of them: make PYTHON=python3.12 ..."; \
			exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing; the first call downloads about 1 GB ..."
	$(PY) -m pip install -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

label: $(LABEL_STAMP) ## environment of `decathlete serve` (MONAI Label) in .venv-label

$(LABEL_STAMP): apps/label/constraints-label.txt setup.cfg setup.py pyproject.toml | $(STAMP)
	DECATHLETE_LABEL_ENV= $(PY) -m decathlete.cli serve --setup

demo: $(STAMP) ## train, score and predict the hippocampus in a few minutes
	@$(PY) -m decathlete.demo

bundles: $(STAMP) ## render the configs of the bundles again, from the table of tasks and the templates
	$(PY) -m decathlete.planning.packaged

test: $(STAMP) ## set-up and the fast tests
	$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP) ## the tests that take longer
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

test-label: $(STAMP) $(LABEL_STAMP) ## the tests that need MONAI Label
	$(PY) -m pytest -m label $(PYTEST_ARGS)

test-all: $(STAMP) ## set-up and all tests
	$(PY) -m pytest $(PYTEST_ARGS)

test-versions: $(STAMP) ## the lowest and the newest versions that setup.cfg allows: imports, help, a prediction
	.ci/versions $(PY)

# The folders are installed under other names (setup.cfg); mypy follows files, so it gets a tree with the real names.
lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@rm -rf build/lint && mkdir -p build/lint/decathlete
	@for entry in apps/*; do ln -s "../../../$$entry" build/lint/decathlete/; done
	@for folder in transforms networks bundles; do ln -s "../../../$$folder" build/lint/decathlete/; done
	cd build/lint && ../../$(PY) -m mypy --config-file ../../pyproject.toml -p decathlete

format: $(STAMP) ## sort imports and format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

wheel: $(STAMP) ## dist/decathlete-*.whl
	@rm -rf build/lib build/bdist.*
	$(PY) -m pip wheel --no-deps -w dist .

clean: ## remove what was built; data, runs and predictions stay
	rm -rf build dist *.egg-info $(VENV) .venv-label .mypy_cache .ruff_cache .pytest_cache
	find apps transforms networks bundles tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
