# make install: .venv with everything in it.   make demo: a federated run with pruning on generated data.
# make test: the tests.   See README.md.
PYTHON ?= python3
VENV   ?= .venv
# auto: torch for the CPU where there is no NVIDIA GPU; cpu, cuda: that build; 'torch==X torchvision==Y': exactly these.
# TORCH_INDEX: where the CPU builds are.
TORCH  ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# LOCKED=1: what locks/ pins, each file held against its hash, without what simulations and tests need.
LOCKED ?=
BIN    := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: api install demo test test-deployment test-soak test-docker test-guide lint mutants format clean bench results lock sbom audit

install: $(VENV)/.installed

# a new version may pin other packages and ask for the same
$(VENV)/.installed: pyproject.toml $(if $(LOCKED),$(wildcard locks/*.txt))
	@$(PYTHON) scripts/install.py $(VENV) --torch '$(TORCH)' --torch-index $(TORCH_INDEX)$(if $(LOCKED), --locked)

demo: install
	@$(BIN)/fedskew run --preset demo --nodes 4

# Those that start Flower's programs and Ray want the machine for themselves: they come after the others.
WORKERS ?= 2
ALONE   := tests/test_flwr_run.py tests/test_own_superlink.py
test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest $(ALONE)

# Real SuperLink and SuperNodes, minutes. As root, with nginx (and its stream module), iproute2 and nftables, every site is
# a host of its own.
test-deployment: install
	$(BIN)/python -m pytest -m deployment -n 2 --dist worksteal --durations=0 --ignore tests/test_deployment_soak.py

# Eight sites, twenty rounds and every fault at once: a quarter of an hour and more.
test-soak: install
	$(BIN)/python -m pytest -m deployment --durations=0 tests/test_deployment_soak.py

# The compose files on a Docker engine that is running: see tests/containers/start-engine.sh.
test-docker: install
	$(BIN)/python -m pytest -m docker --durations=0 --ignore tests/test_docker_guide.py

# docs/deployment.md, typed on three empty Debians with systemd: a quarter of an hour, on the same engine.
test-guide: install
	$(BIN)/python -m pytest -m docker --durations=0 tests/test_docker_guide.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Wrong lines put into a room's code, and which of them no test notices: ROOM=pruning, learning, federation, data or site.
# SAMPLE='--sample 100 --seed 1': so many of them, by chance.
ROOM ?= pruning
SAMPLE ?=
mutants: install
	$(BIN)/python scripts/mutants.py $(ROOM) $(SAMPLE)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# locks/ from pyproject.toml; UPGRADE=1 takes the newest versions. Needs an index of packages.
lock: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

# What the locks pin as a CycloneDX bill of materials, with the hashes; the same locks give the same file.
SBOM ?= build/sbom.cdx.json
sbom: install
	@mkdir -p $(dir $(SBOM))
	cat locks/requirements.txt locks/torch.txt | $(BIN)/cyclonedx-py requirements - --pyproject pyproject.toml \
		--mc-type application --output-reproducible --of JSON --output-file $(SBOM)

# Pages of what programs use, from the docstrings: build/api/index.html.
API := fedskew.api fedskew.plugins fedskew.config fedskew.pruning.criteria fedskew.methods fedskew.model.architecture fedskew.model.modelfile fedskew.runs.folder
api: install
	$(BIN)/python -W error::UserWarning -m pdoc --output-directory build/api $(API)

# Known vulnerabilities of what the locks pin. Asks a database on the internet: where there is none, it fails.
audit: install
	for name in requirements torch build; do \
		$(BIN)/uvx pip-audit --strict --disable-pip --require-hashes --requirement locks/$$name.txt || exit 1; done

# docs/results.md and docs/edge.md from their templates and the committed records.
results: install
	$(BIN)/python docs/results/build.py
	$(BIN)/python docs/edge/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

bench: install
	for name in scoring_overhead data_throughput training_step round_overhead latency server_memory client_start; do \
		$(BIN)/python benchmarks/$$name.py || exit 1; done
