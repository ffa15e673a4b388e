# Needs nothing but make and Python 3.11 or newer. Every target sets up .venv by itself.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench bench-refacing bench-muscle template clean distclean
.DELETE_ON_ERROR:

VENV  := .venv
READY := $(VENV)/.ready
IN    := $(VENV)/bin

# The first Python on PATH that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Two test processes of one thread each: torch and SimpleITK would otherwise fight for the cores.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1

help: ## this list
	@echo "make <target> [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY) ## make .venv with everything that is needed

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or newer on PATH: install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11 (or not a Python): make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(IN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "Installing into $(VENV) (a few minutes the first time)"
	"$(IN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## deface a real head, bring its face back, measure, and show it; OUT=folder
	"$(IN)/refacerisk" demo $(OUT)

TESTS := $(wildcard Testing/core Testing/mrml Testing/gui)

test: $(READY) ## the tests; ARGS="-k surface" for some of them
	$(ONE_THREAD) "$(IN)/python" -m pytest -n $(WORKERS) --dist loadfile -m "not long" $(TESTS) $(ARGS)

test-all: $(READY) ## with those that take long
	$(ONE_THREAD) "$(IN)/python" -m pytest -n $(WORKERS) --dist loadfile $(TESTS) $(ARGS)

lint: $(READY) ## ruff
	"$(IN)/ruff" check .

bench: $(READY) ## the benchmarks behind the numbers that we publish
	@missed=; for script in Testing/benchmarks/bench_*.py; do \
		echo "== $$script"; "$(IN)/python" "$$script" $(ARGS) || missed="$$missed $$script"; done; \
	test -z "$$missed" || { echo "== targets missed in:$$missed"; exit 1; }

bench-refacing: $(READY) ## the cascade: distances by defacer, cost, sampler, resuming; ARGS="--out DIR" keeps results
	@missed=; "$(IN)/python" Testing/benchmarks/bench_refacing.py $(ARGS) || missed="$$missed distances"; \
	echo; "$(IN)/python" Testing/benchmarks/bench_samplers.py || missed="$$missed sampler"; \
	echo; $(ONE_THREAD) "$(IN)/python" -m pytest -q Testing/core/test_training.py -k "killed or torchrun" \
		|| missed="$$missed resuming"; \
	test -z "$$missed" || { echo "== targets missed in:$$missed"; exit 1; }

bench-muscle: $(READY) ## muscle from the head; ARGS="--parts bmi --out DIR" for a part of it
	"$(IN)/python" Testing/benchmarks/bench_muscle.py $(ARGS)

template: $(READY) ## build the average head again; COHORT=folder of heads, LABELS=folder of label heads
	@test -n "$(COHORT)" -a -n "$(LABELS)" || { \
		echo "make template COHORT=/folder/of/heads LABELS=/folder/of/label/heads"; exit 1; }
	"$(IN)/python" -m RefaceRiskLib.template build --cohort "$(COHORT)" --labels "$(LABELS)" \
		--out Resources/Template $(ARGS)

clean: ## remove caches and build results; keeps .venv
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
