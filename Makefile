# Two commands: make demo, make test. (make check: what CI runs; make gpu: the full-scale runs, on a GPU.) Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo/$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test coverage check docs gpu lint package

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/targetprop train digits-ldrl --out $(DEMO)/ldrl
	$(BIN)/targetprop train digits-backprop --out $(DEMO)/backprop
	$(BIN)/targetprop compare $(DEMO)/ldrl $(DEMO)/backprop --out $(DEMO)/comparison.png

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

# The suite again, slower, with the lines it reaches.
coverage: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --cov --cov-report=term --cov-fail-under=90

check: lint test docs

# The site, in docs/_build/html: warnings are errors, links within it are checked, the gallery runs.
docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b linkcheck -W -q -D sphinx_gallery_conf.plot_gallery=0 docs docs/_build/links

# Stops and saves after MINUTES; run it again until it says that every run is finished.
DATA ?= data
MINUTES ?= 8
GPU := results/gpu
gpu: .venv/installed
	$(BIN)/targetprop sweep cifar10-vgg-backprop cifar10-vgg-ldrl --seeds 3 --minutes $(MINUTES) \
		--dtype tf32 --measure_every 1000 --data-dir $(DATA) --out $(GPU)/90-epochs $(ARGS)
	$(BIN)/targetprop sweep cifar10-vgg-ldrl-paper --seeds 1 --epochs 1 --minutes $(MINUTES) \
		--dtype tf32 --measure_every 1000 --data-dir $(DATA) --out $(GPU)/paper-1-epoch $(ARGS)
	$(BIN)/targetprop bench plain backprop ldrl untracked paper --networks simple_vgg \
		--precision tf32 --data-dir $(DATA) --out $(GPU)/bench $(BENCH)

# Wheel and source distribution, and the tests once against the wheel, in an environment of its own.
PACKAGE := build/package
package: .venv/installed
	rm -rf $(PACKAGE)
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build --outdir $(PACKAGE) . > /dev/null
	$(PYTHON) -m venv $(PACKAGE)/venv
	$(PACKAGE)/venv/bin/pip install --quiet --constraint constraints.txt "$$(ls $(PACKAGE)/*.whl)[test]"
	$(PACKAGE)/venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 -p no:cacheprovider

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
