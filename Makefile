# Thin wrappers: every target is one command that can be typed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: course test test-gpu lab notebooks studies bench

course: $(INSTALLED)  ## install, run all lessons on the cpu profile, say where the gallery is
	$(BIN)/starling-nb run

test: $(INSTALLED)  ## lint, type-check, whole test suite: in two processes, then what trains at full size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy starling_nb
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)  ## all lessons on the gpu profile; skipped with the reason without CUDA
	$(BIN)/python -m pytest -m gpu

lab: $(INSTALLED)  ## open the lessons in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: $(INSTALLED)  ## re-execute the lessons and write their committed outputs
	$(BIN)/python -m starling_nb.lesson.notebooks write

studies: $(INSTALLED)  ## measure all studies again, minutes to three quarters of an hour each
	$(BIN)/python -m starling_nb.lesson.studies

bench: $(INSTALLED)  ## measured ratios, printed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
