# Works with GNU make 3.81 (macOS) and newer. `make` alone lists the targets.

PYTHON ?= python3
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready
AXE := tests/browser/node_modules/.package-lock.json
REQUIREMENTS := requirements-api.txt requirements-base.txt requirements-store.txt requirements-arrow.txt requirements-tracing.txt requirements.txt \
  requirements-flower.txt requirements-dev.txt clients/python/pyproject.toml
LOCKED := requirements-api requirements-store requirements-flower requirements requirements-gpu

.DEFAULT_GOAL := help
.PHONY: help setup demo run key doctor test test-unit test-containers test-clients chaos fuzz audit bench bench-peers lint types format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv and install everything (the other targets do it when needed)

demo: $(READY) ## start everything, embed a text, search in it by meaning, stop
	@$(BIN)/python -m launcher demo

run: $(READY) ## start Redis, the API and a worker; Ctrl-C stops them (API_PORT=8000, DATA_DIR=.data)
	@$(BIN)/python -m launcher run

key: ## make an API key for a tenant: API_KEYS_FILE=keys make key NAME=alice (MAY=watch: for figures alone)
	@$(PYTHON) -m core.keys $(NAME) $(MAY)

doctor: $(READY) ## say whether this machine can run the service, and what to do where it cannot
	@$(BIN)/python -m doctor

test: $(READY) $(AXE) ## run all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-unit: $(READY) ## run the tests that need no Redis and no model
	$(BIN)/python -m pytest tests/unit

test-containers: $(READY) ## build the images with Docker, look at them, run a job in them (GPU=1: the GPU image, too)
	TEST_CONTAINERS=1 TEST_GPU_IMAGE=$(GPU) $(BIN)/python -m pytest tests/containers tests/unit/test_container_files.py

test-clients: $(READY) $(CLIENTS_READY) ## try the API with OpenAI's, LangChain's and LlamaIndex's clients, which are installed in .venv-clients
	TEST_CLIENTS=1 $(BIN)/python -m pytest tests/sdk

KILLS ?= 1000
chaos: $(READY) ## kill API, workers and Redis at random under load and count what is lost (KILLS=1000)
	$(BIN)/python -m tests.chaos --kills $(KILLS)

SECONDS ?= 600
fuzz: $(READY) ## send what schemathesis makes up from the API's description, and compare the answers with it (SECONDS=600)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

bench: $(READY) ## measure all but rivals, into tables and bench/results (an hour)
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.small_jobs
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.redis_memory
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.scale_out
	$(BIN)/python -m bench.downloads
	$(BIN)/python -m bench.cache
	$(BIN)/python -m bench.cold_start
	$(BIN)/python -m bench.batches
	$(BIN)/python -m bench.metrics

bench-peers: $(READY) $(PEERS_READY) ## measure beside infinity, which is installed in .venv-peers
	$(BIN)/python -m bench.peers

audit: $(READY) ## look for known vulnerabilities of what the locks name, at PyPI (not in CI: it changes without a commit)
	@for name in $(LOCKED); do \
	  echo "$$name.lock"; \
	  $(BIN)/pip-audit --strict --disable-pip --progress-spinner off -r $$name.lock || { \
	    echo "Vulnerabilities, or no answer: \"could not be audited\" means that PyPI's data is out of reach from here."; exit 1; }; \
	done

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy
	$(BIN)/mypy

format: $(READY) ## rewrite the code in ruff's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Not in the locks: torch, whose CPU and CUDA builds share a version and nothing else, and what only its CUDA build needs. nvidia-ml-py
# is none of that.
lock: $(READY) ## write requirements*.lock anew from requirements*.txt (LOCK_OPTIONS=--upgrade: with the newest of what they leave open)
	for name in $(LOCKED); do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command "make lock" $(LOCK_OPTIONS) $$name.txt --output-file $$name.lock && \
	  awk '/^[a-z]/ { skip = /^(torch=|triton=|nvidia-|cuda-)/ && !/^nvidia-ml-py=/ } !skip' $$name.lock > $$name.new && \
	  mv $$name.new $$name.lock || exit 1; \
	done

clean: ## remove .venv, .venv-peers and .venv-clients, the data of `make run` and all caches
	rm -rf $(VENV) $(PEERS) $(CLIENTS) tests/sdk/node/node_modules tests/browser/node_modules .data .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: so its small CPU build can come from its own index, and nothing else can. Where that index is out of
# reach pip says so within seconds and takes torch from where it takes the rest. TORCH_INDEX_URL= (empty) asks the default index alone.
# The rest comes by uv, which takes half of pip's time, finds torch installed, and compiles it, too, on every CPU. It asks PyPI and knows
# nothing of pip's settings: where these name another index, none, or a proxy, and where uv fails, pip does it.
$(READY): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vector-api needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the modules venv and ensurepip. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): a few minutes and about 500 MB to download at first."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@{ PIP_DISABLE_PIP_VERSION_CHECK=1; export PIP_DISABLE_PIP_VERSION_CHECK; \
	  $(BIN)/python -m pip install --no-compile --no-deps --retries 1 --timeout 15 \
	    $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) $$(grep '^torch==' requirements.txt) && \
	  { ! $(BIN)/python -m pip config list | grep -E '\.(index-url|no-index|proxy)=' > /dev/null && \
	    $(BIN)/python -m pip install --no-compile $$(grep '^uv==' requirements-dev.txt) && \
	    UV_HTTP_TIMEOUT=15 UV_HTTP_RETRIES=1 $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements-dev.txt || \
	    $(BIN)/python -m pip install -r requirements-dev.txt; }; } || { \
	  echo "The installation failed; pip says why above. Nothing needs a compiler where ready-made wheels exist: on Linux"; \
	  echo "(x86-64 and ARM, glibc 2.28 or newer) and macOS. Without a network, point pip at a folder of wheels:"; \
	  echo "PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/of/wheels make $(MAKECMDGOALS)"; exit 1; }
	@touch $(READY)

# As above; torch is the same as ours.
$(PEERS_READY): bench/requirements-peers.txt
	@echo "Installing infinity into $(PEERS): about 500 MB to download at first."
	@test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	@PIP_DISABLE_PIP_VERSION_CHECK=1; export PIP_DISABLE_PIP_VERSION_CHECK; \
	$(PEERS)/bin/python -m pip install --no-deps --retries 1 --timeout 15 \
	  $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) $$(grep '^torch==' $<) && \
	$(PEERS)/bin/python -m pip install -r $<
	@touch $(PEERS_READY)

# The older client lies in a folder of its own, as one environment has one version.
$(CLIENTS_READY): tests/sdk/requirements.txt tests/sdk/requirements-old.txt tests/sdk/node/package-lock.json
	@echo "Installing clients into $(CLIENTS): 650 MB on disk."
	@test -x $(CLIENTS)/bin/pip || $(PYTHON) -m venv $(CLIENTS)
	@PIP_DISABLE_PIP_VERSION_CHECK=1; export PIP_DISABLE_PIP_VERSION_CHECK; \
	$(CLIENTS)/bin/python -m pip install -r tests/sdk/requirements.txt && \
	$(CLIENTS)/bin/python -m pip install --upgrade --target $(CLIENTS)/old -r tests/sdk/requirements-old.txt
	@PATH="$(CURDIR)/$(CLIENTS)/bin:$$PATH" npm ci --prefix tests/sdk/node --no-audit --no-fund
	@touch $(CLIENTS_READY)

# What looks for barriers in the dashboard. Without it these tests are skipped, but in CI.
$(AXE): tests/browser/package-lock.json
	@command -v npm > /dev/null && npm ci --prefix tests/browser --no-audit --no-fund || \
	  echo "npm is not there, or cannot install axe: the dashboard's tests in a browser will be skipped"
