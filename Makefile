# Needs Python 3.11+ and make. Everything else lives in .venv, made here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling is most of what the tests do: three times as fast without optimisation. What is about rounding is not.
UNOPTIMISED := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder
VENV_TPU := .venv-tpu

.PHONY: quickstart agents test test-hosts test-tpu test-browser test-notebooks test-packages docs bench clean

quickstart: $(VENV)/.core  ## environment, then the default experiment: runs/quickstart/report.html
	$(BIN)/python -m ceiling --config configs/lab.py --workdir runs/quickstart

agents: $(VENV)/.core  ## environment, then agents that search: runs/agents/report.html
	$(BIN)/python -m ceiling --config configs/agents.py --workdir runs/agents

test: $(VENV)/.dev  ## environment, then all tests
	$(BIN)/ruff check .
	XLA_FLAGS="$(UNOPTIMISED)" $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not exact and not hosts and not browser"
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m exact $$(grep -rl --include='test_*.py' 'mark\.exact' tests)

test-hosts: $(VENV)/.dev  ## runs of several processes; under a real Slurm too, where it is installed
	XLA_FLAGS="$(UNOPTIMISED)" $(BIN)/python -m pytest -n 2 --dist loadfile -m hosts tests/hosts

test-tpu: $(VENV_TPU)/.done  ## an environment of its own, then every program compiled for described TPUs
	$(VENV_TPU)/bin/python -m pytest -n 2 tests/tpu

test-browser: $(VENV)/.dev  ## every page in a headless Chromium (the system's), at two widths, light and dark
	XLA_FLAGS="$(UNOPTIMISED)" $(BIN)/python -m pytest -m browser tests/browser

test-notebooks: $(VENV)/.dev  ## every notebook, top to bottom, in tiny mode
	XLA_FLAGS="$(UNOPTIMISED)" $(BIN)/python scripts/notebooks.py run

test-packages: $(VENV)/.core  ## wheel and sdist, each in an empty environment, under every Python that is found
	$(BIN)/python scripts/packages.py

docs: $(VENV)/.dev  ## the documentation as a site: docs/_build/html/index.html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.core
	$(BIN)/python scripts/bench.py

$(VENV)/.core: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("ceiling needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@

DEV := requirements-dev.txt requirements-extras.txt requirements-browser.txt requirements-docs.txt requirements-notebook.txt
$(VENV)/.dev: $(VENV)/.core $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt $(DEV:%=-r %)
	touch $@

$(VENV_TPU)/.done: requirements.txt requirements-tpu.txt pyproject.toml
	test -x $(VENV_TPU)/bin/python || $(PYTHON) -m venv $(VENV_TPU)
	$(VENV_TPU)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-tpu.txt
	$(VENV_TPU)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TPU)
