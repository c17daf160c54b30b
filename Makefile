# One door: every command that a user or a developer needs. `make help` lists them.
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin
# Tests mostly wait, on sockets and processes: two workers, each with files and servers of its own.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile
# The quick tests start no servers of a file's own: a worker that is done takes tests of the others',
# and a third one works while two wait.
# They commit and fsync tens of thousands of times; in memory, where there is room for it, they wait for none.
MEMORY := $(shell df -k --output=avail /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 > 4000000 {print "/dev/shm"}')
STAMP := .venv/.installed
# Of `make bench`, those that may be measured alone.
SUBJECTS := models inference scale fairness compressed long_series cluster
# Two workers and hundreds of child processes import the same modules: compiled once, not by each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup system demo run test check lint types imports unit jobs golden training network browser faults test-long bench models scale fairness compressed long_series cluster soak train train-models train-peers docs pins sbom clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## make .venv and install the product and its development tools

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The tests talk to real peers. As root on Debian they are installed; elsewhere what is missing is named.
system:
	@missing=""; \
	command -v storescu >/dev/null && command -v storescp >/dev/null || missing="$$missing dcmtk"; \
	command -v Orthanc >/dev/null || missing="$$missing orthanc"; \
	test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so || missing="$$missing orthanc-dicomweb"; \
	command -v strace >/dev/null || missing="$$missing strace"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	command -v rsyslogd >/dev/null && ls /usr/lib/*/rsyslog/lmnsd_gtls.so >/dev/null 2>&1 || missing="$$missing rsyslog rsyslog-gnutls"; \
	command -v systemd-analyze >/dev/null || missing="$$missing systemd"; \
	command -v strace >/dev/null || missing="$$missing strace"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "install these first:$$missing (Debian package names)" >&2; exit 1; fi; \
	fi

demo: setup  ## a scanner, the node and a PACS on a real series (MODEL=brain, haemorrhage, nodules: of another model); report in var/demo/report.html
	@if ! command -v Orthanc >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends orthanc dcmtk >/dev/null || echo "no Orthanc: a built-in Storage SCP plays the PACS"; fi
	@$(BIN)/midslice demo $(if $(MODEL),--model $(MODEL))

run: setup  ## start the node with config.toml
	$(BIN)/midslice serve

test: setup system check  ## everything that CI runs: linters, types, import contracts, every test
	$(PYTEST)

check: lint types imports  ## linters, types and import contracts

lint: setup  ## style of the code
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## who may import whom
	$(BIN)/lint-imports

unit: setup  ## the quick tests: no training, no kill, no whole node
	$(if $(MEMORY),TMPDIR=$(MEMORY)) $(BIN)/pytest -n 3 --dist worksteal -o tmp_path_retention_policy=failed -p no:schemathesis tests/unit tests/models

jobs: setup system  ## whole jobs of each family, every case of CASES.md and bad input; their files read by other programs
	$(PYTEST) tests/jobs

golden: setup system  ## write the golden files anew, where a change of what the product says is meant
	GOLDEN=write $(PYTEST) tests/golden

training: setup  ## trainings, calibrations and evaluations of whole series, seconds each
	$(PYTEST) tests/training

network: setup system  ## tests with real peers on sockets
	$(PYTEST) tests/network

browser: setup system  ## the administrator's pages in a headless Chromium
	$(BIN)/pytest tests/browser

faults: setup system  ## every fault test, with 200 power cuts (FAULT_ROUNDS) and 20,000 mutations (FUZZ_COUNT); ends with a table
	FAULT_ROUNDS=$${FAULT_ROUNDS:-200} FUZZ_COUNT=$${FUZZ_COUNT:-20000} $(PYTEST) tests/faults --timeout 14400

test-long: setup system  ## the tests that take over 30 seconds
	$(BIN)/pytest -m long --timeout 3600

bench: setup system  ## the benchmarks against peers in the same run (`bench models` and others by name: one alone; BASE=CHECKOUT measures its inference too); writes benchmark.json
	DATA=$(DATA) BASE=$(BASE) $(BIN)/python -m tests.benchmarks.run $(filter $(SUBJECTS),$(MAKECMDGOALS))

models scale fairness compressed long_series cluster:
	@: a subject of bench

soak: setup system  ## eight scanners and a fault a minute for SOAK_MINUTES (60); exits non-zero on a loss or on growth
	$(BIN)/python -m tests.benchmarks.soak

train: setup  ## train the generator from DATA, on the CPU or on CUDA
	$(BIN)/midslice train $(DATA)

train-models: setup  ## train the models beside the generator from DATA, as those that ship were; under three hours on two cores
	$(BIN)/midslice train $(DATA)/mr-brain --model brain-unet --steps 1000
	$(BIN)/midslice train $(DATA)/ct-haemorrhage --model haemorrhage
	$(BIN)/midslice train $(DATA)/ct-nodules --model nodules

train-peers: setup  ## train the networks that the generator is compared with; three hours of one core
	$(BIN)/midslice train $(DATA) --model pix2pix --minutes 60
	$(BIN)/midslice train $(DATA) --model pix2pix-hu --minutes 60
	$(BIN)/midslice train $(DATA) --model through-plane --minutes 60

pins: setup  ## write requirements.txt and requirements-dev.txt anew, with hashes, from constraints.txt
	$(BIN)/python -m tests.pins

sbom: setup  ## write sbom.json, the software bill of materials (CycloneDX)
	$(BIN)/python -m tests.sbom

docs: setup  ## write CONFORMANCE.md anew from the shipped configuration, and config.schema.json
	$(BIN)/midslice conformance > CONFORMANCE.md.new && mv CONFORMANCE.md.new CONFORMANCE.md
	$(BIN)/midslice schema > config.schema.json.new && mv config.schema.json.new config.schema.json
