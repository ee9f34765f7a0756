# Everything lives in .venv inside the checkout; each target installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
STAMP  := $(VENV)/.installed

.PHONY: demo test test-all test-quick lint docs bench tiny format clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the CPU build, without several gigabytes of CUDA libraries that a later package would pull in.
$(STAMP): pyproject.toml | $(BIN)/python
	$(PIP) "torch==2.13.0" || $(PIP) torch
	$(PIP) -e ".[test,lint,docs]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not every_family"

# Every law on every family, too: before a family lands.
test-all: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not every_family"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

tiny: $(STAMP)
	$(BIN)/python benchmarks/train_tiny.py

clean:
	rm -rf $(VENV) .cache site out
