# Both `make demo` and `make test` set everything up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
CLUSTER = $(BIN)/python -m cluster.box $(if $(PORT),--port $(PORT))
SEARCH_CLIPS := --clips.size_px 48 --clips.test_clips 0
# A lane of tests in which no process may start Ray. Two lanes have two cores: more threads of torch wait for each other.
WITHOUT_RAY := OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/tests/without_ray$${PYTHONPATH:+:$$PYTHONPATH}"
FAST := 'not ray and not server and not slow and not soak'
# What one of two lanes has; the other has whatever else there is.
PARTS := $(addprefix tests/, data evaluation models settings storage training visualize)

.PHONY: demo demo-search cluster-up cluster-down cluster-demo test test-clusters test-ray test-others-runs test-others-parts test-fast test-fast-parts test-fast-runs soak check reference format clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The service's page is tested in a real browser; without one its tests say why they are skipped.
.venv/.browser: .venv/.installed
	command -v chromium chromium-browser google-chrome >/dev/null || test "$$(id -u)" != 0 || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || true
	touch $@

demo: .venv/.installed  ## the whole journey on synthetic videos, about 6 minutes on 2 cores once installed
	$(BIN)/twostream demo

demo-search: .venv/.installed  ## a search over fusions for videos that take both streams and time, on 2 cores
	$(BIN)/twostream synthesize demo/search/binding --clips.group binding $(SEARCH_CLIPS) --clips.train_clips 400 --clips.val_clips 100
	$(BIN)/twostream synthesize demo/search/order --clips.group order $(SEARCH_CLIPS) --clips.train_clips 200 --clips.val_clips 60
	$(BIN)/twostream ingest --catalog.name binding --catalog.root demo/search/binding \
		--more '[{name: order, root: demo/search/order}]' --flow.short_side_px 48 --out demo/search/shards
	$(BIN)/twostream tune --config demo_search

cluster-up: .venv/.installed  ## an S3 store, MLflow with a login, a Ray head and two nodes on this machine
	$(CLUSTER) up $(if $(POSTGRES),--postgres)

cluster-demo: .venv/.installed  ## the whole mission on them by submitted jobs; KILL=1: a node dies in training
	$(CLUSTER) demo $(if $(KILL),--kill) $(if $(CLIP),--clip $(CLIP))

cluster-down: .venv/.installed  ## ends them, and removes all that they left
	$(CLUSTER) down

test: .venv/.installed .venv/.browser  ## all tests but the soak, three lanes at a time
	$(MAKE) --no-print-directory --keep-going --jobs 3 test-clusters test-ray test-others-runs test-others-parts

test-clusters:  # they mostly wait for clusters of their own
	$(BIN)/python -m pytest -m 'own_cluster and not soak'

test-ray:  # they share one cluster
	$(BIN)/python -m pytest -m 'ray and not own_cluster and not soak'

test-others-runs:  # niced: the clusters' tests watch the time
	$(WITHOUT_RAY) nice $(BIN)/python -m pytest -m 'not ray and not soak' $(PARTS:%=--ignore %)

test-others-parts:  # begins where one of the other lanes has ended
	$(WITHOUT_RAY) nice $(BIN)/python -m pytest -m 'not ray and not soak' $(PARTS)

test-fast: .venv/.installed  ## what needs no Ray, no server and no patience, in two lanes
	$(MAKE) --no-print-directory --keep-going --jobs 2 test-fast-parts test-fast-runs

test-fast-parts:
	$(WITHOUT_RAY) $(BIN)/python -m pytest -m $(FAST) $(PARTS)

test-fast-runs:
	$(WITHOUT_RAY) $(BIN)/python -m pytest -m $(FAST) $(PARTS:%=--ignore %)

soak: .venv/.installed  ## kills and outages, minutes each
	$(BIN)/python -m pytest -m soak

check: .venv/.installed  ## formatting, lint, types (of tests too), arrows, cluster files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python cluster/check.py

reference: .venv/.installed  ## docs/reference.md: every verb and setting
	$(BIN)/python -m twostream_ray.verbs.reference > docs/reference.md.new && mv docs/reference.md.new docs/reference.md

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache
