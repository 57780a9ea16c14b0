# Everything on a machine with Python >= 3.11, make, bash and POSIX's basic utilities: `make quickstart`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help .venv quickstart test test-cluster check clean

help:
	@echo "make quickstart   a sweep on the embedded digits: search, export, samples, test metrics (about two minutes)"
	@echo "make test         run the tests"
	@echo "make test-cluster what needs other programs: a round trip to a cluster, in namespaces of its own (as root), a compiler (about seven minutes)"
	@echo "make check        lint, format, types and layers"
	@echo "make .venv        install into .venv what the others need (they do it themselves)"
	@echo "make clean        remove caches and build outputs; .venv and runs/ stay"

.venv: $(STAMP)

# pip would compile all packages on one core, which takes a third of the time. What no Python can read (a template, say) is left, and so is
# a third that hardly anything imports.
UNCOMPILED := /tests/|/transformers/models/|/diffusers/(modular_)?pipelines/|/ray/rllib/
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, %s is %s: make PYTHON=... names another" % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@$(BIN)/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' .venv/lib || true
	@touch $@

# Run again, it goes on with an interrupted sweep, or shows the finished one.
quickstart: $(STAMP)
	$(BIN)/fewshot-ray run sweeps/quickstart.yaml
	$(BIN)/fewshot-ray export runs/quickstart runs/quickstart/model --overwrite
	$(BIN)/fewshot-ray sample runs/quickstart/model runs/quickstart/samples --overwrite
	$(BIN)/fewshot-ray evaluate runs/quickstart

# Both, whatever the first has found. One after the other: on two busy cores tests of a Ray run out of time.
.PHONY: test-without-ray test-with-ray
test: $(STAMP)
	@$(MAKE) --no-print-directory --jobs=1 --keep-going test-without-ray test-with-ray

# A thread each. One process more than there are cores, as tests of stores wait for these.
test-without-ray test-with-ray: export OMP_NUM_THREADS = 1
test-without-ray: $(STAMP)
	$(BIN)/python -m pytest -m "not ray and not roundtrip" --numprocesses=$$($(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))') --dist=worksteal

# File by file on two cores, those that take longest first (tests/conftest.py), as most of it waits for one process to start.
test-with-ray: $(STAMP)
	$(BIN)/python -m pytest -m ray --numprocesses=logical --maxprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=10

# On Debian: apt-get install openssh-server openssh-client rsync iproute2 chromium g++ python3-dev. Where it can't run, it says why and skips.
# Three processes: most of each is waiting. What needs no cluster gives way to the two clusters, whose hosts know nothing of each other.
ALONE := tests/roundtrip/test_a_full_disk.py tests/roundtrip/test_compile.py
SECOND := tests/roundtrip/test_a_shared_trial.py tests/roundtrip/test_ports.py
test-cluster: $(STAMP)
	@failed=0; trap 'exit 130' INT; set -x; \
	nice $(BIN)/python -m pytest -m roundtrip $(ALONE) & alone=$$!; \
	$(BIN)/python -m pytest -m roundtrip $(SECOND) & second=$$!; \
	$(BIN)/python -m pytest -m roundtrip tests/roundtrip $(addprefix --ignore=,$(ALONE) $(SECOND)) || failed=1; \
	wait $$second || failed=1; \
	wait $$alone || failed=1; \
	exit $$failed

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find bench fewshot_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +
