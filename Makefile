# make demo | test | lint | format | clean; the first use installs into .venv.
# make image | secrets | backup | restore | test-containers: docs/containers.md; test-faults: docs/security.md;
# test-networks: random networks through the methods

VENV ?= .venv
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

IMAGE ?= model-compression-lab
# More arguments of the image's build: BUILD='--build-arg FLAVOUR=cpu'
BUILD ?=

.PHONY: demo test test-faults test-networks test-containers browser lint format clean image secrets backup restore

# --no-serve-artifacts: without it, experiments made in the UI keep their files where only a server can write.
demo: $(VENV)/.installed
	$(VENV)/bin/mlflow run . -b host -e distill -P task=digits
	@echo
	@echo "To see the run in a browser, at http://127.0.0.1:5000:"
	@echo "    $(VENV)/bin/mlflow ui --no-serve-artifacts"

test: $(VENV)/.installed browser
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not containers and not faults'

# Three hundred random networks in place of the 66 of `make test`.
test-networks: $(VENV)/.installed
	RANDOM_NETWORKS=300 $(VENV)/bin/python -m pytest -n 2 tests/methods/test_random_networks.py

# Kills, broken servers, strangers' files: counted, on this machine alone, in some minutes. The table comes last.
test-faults: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m faults tests/faults

# Builds the image, starts the stack, breaks it. Needs a Docker engine.
test-containers: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m containers tests/containers

# The study's pages are tried in a real browser, in Chinese too.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium fonts-noto-cjk; } \
	|| { echo "The tests need Chromium: sudo apt-get install chromium fonts-noto-cjk"; exit 1; }

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

image:
	DOCKER_BUILDKIT=1 docker buildx build --load --tag $(IMAGE) \
	  --build-arg COMMIT=$$(git rev-parse HEAD 2>/dev/null) $(BUILD) .

secrets:
	@bash docker/secrets.sh

# make backup TO=FOLDER, make restore FROM=FOLDER: databases and artifacts of the running stack.
backup:
	@bash docker/backup.sh '$(TO)'

restore:
	@bash docker/restore.sh '$(FROM)'

# Runs and results (mlflow.db, mlruns, .compression) stay.
clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last: an installation that was interrupted is taken up again.
$(VENV)/.installed: pyproject.toml
	$(if $(PYTHON),,$(error No Python 3.11, 3.12 or 3.13 with its venv module was found. \
	Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12))
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --editable '.[dev]'
	touch $@
