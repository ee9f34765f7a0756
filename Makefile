# Everything lives in .venv inside the checkout; each target installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
STAMP  := $(VENV)/.installed
TOOLS  := .cache/tools
LOCK   := requirements/lock.txt

.PHONY: demo test test-all test-quick lint docs bench tiny format clean lock audit sbom wheel

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the CPU build, without several gigabytes of CUDA libraries that a later package would pull in.
# LOCKED=1: the packages of requirements/lock.txt, by their hashes, and nothing that is built here but easyfn itself.
$(STAMP): pyproject.toml | $(BIN)/python
ifdef LOCKED
	$(PIP) --no-deps --only-binary :all: --require-hashes -r $(LOCK)
	$(PIP) "torch==2.13.0"
	$(PIP) --no-deps --no-build-isolation -e .
else
	$(PIP) "torch==2.13.0" || $(PIP) torch
	$(PIP) -e ".[test,lint,docs]"
endif
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not every_family"

# Every law on every family, too: before a family lands.
test-all: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "quick and not every_family"

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

# What follows is about the packages themselves: docs/supply-chain.md. Its tools have an environment of their own.
$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -q --no-deps --only-binary :all: --require-hashes -r requirements/tools.txt
	touch $@

# torch and what its CUDA builds bring are left out: which build is right depends on the machine.
UV := $(TOOLS)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q
lock: $(TOOLS)/.installed
	echo torch==2.13.0 > .cache/torch.txt
	printf 'hatchling\neditables\n' | $(UV) pyproject.toml - --extra test --extra lint --extra docs -c .cache/torch.txt \
	  | awk '/^[a-z]/ {left = /^(torch|triton|nvidia-|cuda-)/} !left' > $(LOCK)
	printf 'uv\npip-audit\ncyclonedx-bom\nhatchling\n' | $(UV) - > requirements/tools.txt

audit: $(STAMP) $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --skip-editable --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

sbom: $(STAMP) $(TOOLS)/.installed
	mkdir -p out
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o out/sbom.json $(BIN)/python

# Built twice from what is committed, in two folders: the same bytes.
wheel: $(TOOLS)/.installed
	rm -rf dist .cache/wheel && mkdir -p dist
	for name in one another-folder; do \
	  mkdir -p .cache/wheel/$$name && git archive HEAD | tar -x -C .cache/wheel/$$name && \
	  (cd .cache/wheel/$$name && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	    "$(CURDIR)/$(TOOLS)/bin/python" -m hatchling build > /dev/null) || exit 1; done
	diff -r .cache/wheel/one/dist .cache/wheel/another-folder/dist
	cp .cache/wheel/one/dist/* dist/
	cd dist && sha256sum *

clean:
	rm -rf $(VENV) .cache site out
