# Two commands: make demo, make test. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo/$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/targetprop train digits-ldrl --out $(DEMO)/ldrl
	$(BIN)/targetprop train digits-backprop --out $(DEMO)/backprop
	$(BIN)/targetprop compare $(DEMO)/ldrl $(DEMO)/backprop --out $(DEMO)/comparison.png

test: .venv/installed
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
