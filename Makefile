# Two commands do all their own set-up: `make demo` and `make test`. VENV=/path uses another environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.usam-installed
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# Threads that spin while they wait make everything slower on a busy machine.
export OMP_WAIT_POLICY = passive

# Environments at the ends of what usam works with; those of wheels stand outside the repository.
ENVS ?= .envs
WHEEL ?= $(or $(TMPDIR),/tmp)/usam-wheel
PLUGGED ?= $(or $(TMPDIR),/tmp)/usam-plugged
# The torch that `make lock` pins; torchvision's version belongs to it.
TORCH ?= torch==2.14.1 torchvision==0.29.1
PIP := pip --disable-pip-version-check
# Also what builds the package is pinned: pip reads the first of these for it, or the second, by its version.
PINNED := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt
PYTEST := -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install lock demo ablation real test test-all test-hf tested test-newest test-lowest test-wheel test-plugins lint specialists format bench readme docs audit release-check clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z -]+:.*## / {printf "%-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make the environment of constraints.txt (reused while it and pyproject.toml stay the same)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PINNED) $(BIN)/$(PIP) install --quiet --editable ".[dev]"
	touch $(STAMP)

lock:  ## Write constraints.txt from a fresh environment
	rm -rf $(ENVS)/lock
	$(PYTHON) -m venv $(ENVS)/lock
	$(ENVS)/lock/bin/$(PIP) install --quiet $(TORCH) --editable ".[dev]"
	{ echo "# The environment of 'make demo' and 'make test', written by 'make lock'."; \
	  $(ENVS)/lock/bin/$(PIP) freeze --exclude-editable; } > constraints.txt

demo: $(STAMP)  ## Make a small world of sound, train the embedded model on its four tasks, test it, and report
	$(BIN)/usam demo

ablation: $(STAMP)  ## Make the runs of the paper's ablation that are not recorded yet, and write docs/ablation.md
	$(BIN)/python benchmarks/ablation/ablation.py

# What only this needs stands beside the environment; REAL_WITH=/path brings it from elsewhere, REAL_FETCHED=/path what was fetched.
REAL ?= runs/real
REAL_WITH ?= $(ENVS)/real
REAL_NEEDS := piper-tts==1.8.0 onnxruntime==1.32.0 flatbuffers==25.12.19 protobuf==7.36.2 pathvalidate==3.3.1 tinysoundfont==0.3.7

$(REAL_WITH)/.installed: plugins/usam-real/pyproject.toml | $(STAMP)
	$(BIN)/$(PIP) install --quiet --no-deps --upgrade --target $(REAL_WITH) $(REAL_NEEDS) ./plugins/usam-real
	touch $@

real: $(STAMP) $(REAL_WITH)/.installed  ## Real specialists and a real language model, fetched, joined, trained and tested (an hour on two cores)
	PYTHONPATH=$(CURDIR):$(CURDIR)/plugins/usam-real:$(abspath $(REAL_WITH)) $(BIN)/python -m usam_real show $(REAL) $(if $(REAL_FETCHED),--fetched $(REAL_FETCHED))

lint: $(STAMP)  ## ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict usam

test: lint  ## Lint, types, and all fast tests
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: lint  ## Also the slow tests
	$(BIN)/python $(PYTEST)

# transformers' own tests are in its source distribution only; what they need beside us goes there too.
HF = $(ENVS)/hf
TRANSFORMERS := $(shell sed -n 's/^transformers==//p' constraints.txt)

$(HF)/transformers-$(TRANSFORMERS)/tests/__init__.py: | $(STAMP)
	$(BIN)/$(PIP) download --quiet --no-deps --no-binary transformers --dest $(HF) transformers==$(TRANSFORMERS)
	$(BIN)/$(PIP) install --quiet --no-deps --upgrade --target $(HF)/lib parameterized
	tar -xzf $(HF)/transformers-$(TRANSFORMERS).tar.gz --directory $(HF)
	touch $@

test-hf: $(STAMP) $(HF)/transformers-$(TRANSFORMERS)/tests/__init__.py  ## The tests of transformers itself, on our models; prints the counts
	PYTHONPATH=$(HF)/lib TRANSFORMERS_SOURCE=$(HF)/transformers-$(TRANSFORMERS) \
	  $(BIN)/python $(PYTEST) -c tests/hf/pytest.ini tests/hf/suite.py

tested: test  ## Record the environment of constraints.txt as tested, once `make test` has passed in it
	$(BIN)/python tests/versions/versions.py record constraints
	$(BIN)/python tests/versions/versions.py table

test-newest test-lowest: test-%: $(STAMP)  ## The fast tests with the newest, or the lowest, version of everything
	rm -rf $(ENVS)/$*
	$(PYTHON) -m venv $(ENVS)/$*
	$(BIN)/python tests/versions/bounds.py $* > $(ENVS)/$*.txt
	PIP_CONSTRAINT=$(ENVS)/$*.txt $(ENVS)/$*/bin/$(PIP) install --quiet -r $(ENVS)/$*.txt
	$(ENVS)/$*/bin/$(PIP) install --quiet --no-deps --editable .
	$(ENVS)/$*/bin/python $(PYTEST) -m "not slow"
	$(ENVS)/$*/bin/python tests/versions/versions.py record $*
	$(ENVS)/$*/bin/python tests/versions/versions.py table

test-wheel: $(STAMP)  ## Build sdist and wheel, and test the wheel, with the sdist's tests, outside the repository
	rm -rf $(WHEEL) dist
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv $(WHEEL)/venv
	$(PINNED) $(WHEEL)/venv/bin/$(PIP) install --quiet "$$(echo dist/*.whl)[dev]"
	tar -xzf dist/*.tar.gz --directory $(WHEEL) && mv $(WHEEL)/usam-* $(WHEEL)/sdist && rm -r $(WHEEL)/sdist/usam
	cd $(WHEEL)/sdist && $(WHEEL)/venv/bin/python $(PYTEST) -m "not slow"

test-plugins: $(STAMP)  ## Build wheels of usam and of each plugin, and run the plugins' tests on them, outside the repository
	rm -rf $(PLUGGED)
	for project in . plugins/*; do \
	  (cd $$project && $(abspath $(BIN))/python -m hatchling build --target wheel --directory $(PLUGGED)/wheels) || exit 1; \
	done
	for project in plugins/*; do mkdir -p $(PLUGGED)/$$project && cp -r $$project/tests $$project/README.md $(PLUGGED)/$$project || exit 1; done
	$(PYTHON) -m venv $(PLUGGED)/venv
	$(PINNED) $(PLUGGED)/venv/bin/$(PIP) install --quiet pytest $(PLUGGED)/wheels/*.whl
	cd $(PLUGGED) && venv/bin/usam list --check
	cd $(PLUGGED) && venv/bin/python -m pytest -q -o "markers=slow: takes more than a few seconds" plugins

specialists: $(STAMP)  ## Train the encoders that come with the package anew (18 minutes on two cores)
	$(BIN)/python -m usam.demo.specialists

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Run every benchmark; results go to benchmarks/results
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

readme: $(STAMP)  ## Write what is generated: parts of README.md, docs/benchmarks.md, the pictures
	$(BIN)/python tests/readme.py
	$(BIN)/python docs/draw_model.py
	$(BIN)/python docs/draw_house.py
	$(BIN)/python docs/draw_concepts.py
	$(BIN)/python docs/draw_world.py
	$(BIN)/python docs/write_kit.py

audit: $(STAMP)  ## Ask for known vulnerabilities of what constraints.txt pins (needs a network)
	test -x $(ENVS)/audit/bin/pip-audit || { $(PYTHON) -m venv $(ENVS)/audit && $(ENVS)/audit/bin/$(PIP) install --quiet pip-audit; }
	$(ENVS)/audit/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt

release-check: $(STAMP)  ## Versions, changelog, citation, plugins, sdist and wheel: is this ready to be released?
	$(BIN)/python tests/versions/release_check.py

docs: $(STAMP)  ## Build the site into build/docs/site; a warning is an error
	$(BIN)/python docs/make_site.py

clean:  ## Remove caches and demo output; the environment stays
	rm -rf runs/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
