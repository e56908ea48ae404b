# make demo: a whole campaign on real data. make test: the tests that need no services but Java's wire server.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-hpc lint bench docs clean

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/installed ## A campaign at 350 GPa: three rounds, a report
	@test -f $(DEMO)/campaign.yaml || $(BIN)/inv-design init $(DEMO) --template demo
	$(BIN)/inv-design run --config $(DEMO)/campaign.yaml
	$(BIN)/inv-design status --config $(DEMO)/campaign.yaml
	$(BIN)/inv-design query --config $(DEMO)/campaign.yaml --stage dft --sort target_error --limit 10
	$(BIN)/inv-design report --config $(DEMO)/campaign.yaml -o $(DEMO)/report.html

test: $(VENV)/installed ## Tests; says what it skipped
	$(BIN)/python -m pytest -m "not slow and not hpc"

test-slow: $(VENV)/installed ## Minutes: kill -9 at random moments, a campaign end to end
	$(BIN)/python -m pytest -m "slow and not hpc"

test-hpc: $(VENV)/installed ## Slurm and GPAW for real: a campaign on a cluster of one node, kills at random moments
	tests/hpc/install.sh $(VENV)
	INV_DESIGN_REQUIRE_WIRE=1 INV_DESIGN_REQUIRE_HPC=1 $(BIN)/python -m pytest -m hpc -s

lint: $(VENV)/installed ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed ## The figures of the README (an hour)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(VENV)/installed ## The pages made from code
	$(BIN)/python docs/generate_reference.py

clean:
	rm -rf $(VENV) $(DEMO)
