# Everything a bare machine needs is made here: `make demo` shows the main job, `make test` proves it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test prove gpu lint wheel clean

demo: $(VENV)/ready  ## synth → train → infer → evaluate → preview, in a few minutes
	$(BIN)/raysegment demo --out demo-out

test: $(VENV)/ready  ## the fast suite
	$(BIN)/python -m pytest -m "not slow and not chaos and not gpu"

prove: $(VENV)/ready  ## the long proofs: trainings, kills, scale
	$(BIN)/python -m pytest -m "slow or chaos"

gpu: $(VENV)/ready  ## what needs a CUDA device, and a torch that finds it in $(VENV)
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/ready
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info

# torch first and pinned: PyPI's newest plain torch brings several GB of CUDA along.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
