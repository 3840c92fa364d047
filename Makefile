# make search   set everything up, then discover an algorithm on the default model
# make test     set everything up, then run the tests
#
# Needs Python 3.11 or newer, pip, make and gcc (torch.compile and Triton call it). Everything else goes to .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?= smollm2-135m
# Options passed through: make search ARGS="--max-candidates 60", make test ARGS="-k quest".
ARGS   ?=
# Processes that run tests side by side (files stay whole: tests/order.py): make test JOBS=1 runs them one after the other.
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 8 ] && echo 8 || echo $$n)
# A further index to take torch from, e.g. one with CPU-only builds. Empty: wherever pip is set up to look.
TORCH_INDEX ?=
# The run that `make report` draws: the newest one.
RUN    ?= $(notdir $(patsubst %/,%,$(firstword $(shell ls -dt runs/*/ 2>/dev/null))))

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup fetch search test chaos lint bench report docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.installed  ## create .venv with the pinned packages (once; again when they change)

# torch goes first and alone: the second command then finds it installed and pulls no other build.
# (pip ranks 2.13.0+cpu above 2.13.0, so an extra index with CPU builds is enough to get one.)
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

fetch: setup  ## bring the default model's weights to the cache (once, 93 MB)
	$(BIN)/vortex-search models fetch $(MODEL)

search: fetch  ## run the default campaign; ends with leaderboard, report and exported winner
	$(BIN)/vortex-search --model $(MODEL) $(ARGS)

test: fetch  ## run all tests that this machine can
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

chaos: setup  ## faults on clusters of several nodes, as a table: workers, nodes, drivers, disks (20 minutes)
	CHAOS=1 $(BIN)/python -m pytest tests/chaos -s -n 0 $(ARGS)

lint: setup  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples

bench: fetch  ## measure again what the README quotes, as far as this machine can; results in runs/bench
	$(BIN)/python -m benchmarks

report: setup  ## draw the newest run again (or RUN=name)
	@test -n "$(RUN)" || { echo "no runs yet: make search"; exit 1; }
	$(BIN)/vortex-search report $(RUN)

docs: setup  ## build the documentation site into build/site (mkdocs serve shows it while you write)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict --quiet

clean:  ## remove .venv and caches; runs and fetched weights stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
