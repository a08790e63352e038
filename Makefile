# make demo   train the embedded sprites model and write a report (two CPU cores, no downloads of models)
# make test   every test that takes seconds to a few minutes
#
# Both create .venv on first use. PYTHON=python3.12 picks the interpreter (3.10 to 3.13).
# ARGS="..." is passed on: make demo ARGS="--config.num_steps=5", make test ARGS="-k plan".

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format docs clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile
	@echo "make test-slow, make lint, make format, make docs, make install, make clean: see CONTRIBUTING.md"

install: $(STAMP)

# Runs again only when the packages that the project needs have changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is missing or not Python 3.10 to 3.13; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) can't create environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	@echo "Installing the packages of constraints.txt into $(VENV) (7 GB with torch; minutes, once) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(RUN) launch.py train --config configs/nft_tiny.py:tiny_sprites $(ARGS)

# Two files at a time, then what starts Ray alone. pytest's 5, "no tests", is no failure of one half (ARGS="-k ...").
test: $(STAMP)
	@$(RUN) -m pytest -m "not slow and not system" -n 2 --dist loadfile $(ARGS) || [ $$? = 5 ]
	@$(RUN) -m pytest -m "not slow and system" $(ARGS) || [ $$? = 5 ]

test-slow: $(STAMP)
	@$(RUN) -m pytest -m slow $(ARGS)

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/pyright
	@$(VENV)/bin/lint-imports

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

docs: $(STAMP)
	@$(RUN) docs/write_reference.py
	@$(RUN) docs/write_presets.py
	@$(RUN) docs/write_rewards.py

# Runs (logs/) are kept: they are results.
clean:
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed $(VENV), caches and builds; logs/ is kept."
