# make install: .venv with everything in it.   make demo: a federated run with pruning on generated data.
# make test: the tests.   See README.md.
PYTHON ?= python3
VENV   ?= .venv
# auto: torch for the CPU where there is no NVIDIA GPU; cpu, cuda: that build; 'torch==X torchvision==Y': exactly these.
# TORCH_INDEX: where the CPU builds are.
TORCH  ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN    := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: install demo test test-deployment test-docker lint format clean bench results

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) scripts/install.py $(VENV) --torch '$(TORCH)' --torch-index $(TORCH_INDEX)

demo: install
	@$(BIN)/fedskew run --preset demo --nodes 4

test: install
	$(BIN)/python -m pytest

# Real SuperLink and SuperNodes, minutes. As root, with nginx (and its stream module), iproute2 and nftables, every site is
# a host of its own.
test-deployment: install
	$(BIN)/python -m pytest -m deployment -n 2 --dist worksteal --durations=0

# The compose files on a Docker engine that is running: see tests/containers/start-engine.sh.
test-docker: install
	$(BIN)/python -m pytest -m docker --durations=0

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/results.md from its template and the committed records.
results: install
	$(BIN)/python docs/results/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

bench: install
	for name in scoring_overhead data_throughput round_overhead latency server_memory client_start; do \
		$(BIN)/python benchmarks/$$name.py || exit 1; done
