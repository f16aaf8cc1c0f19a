"""Models that read every battle both ways: `from modeling import Judge, load_battles, Gemma2ForPreference`.

Ten packages, one concern each. A package imports only from those below it in `PACKAGES`:

    serving      a judge for many people: server, web page, protocols
    publishing   model cards from facts, uploads to the Hub
    training     setup, Trainer, checkpoints, memory plan, the record of a run
    judging      members and judges: folders, loading, canaries, passes, calibration, rankings, rewards, pseudo-labels
    evaluation   statistics and reports: metrics, intervals, baselines, biases, style, votes, leaderboard
    settings     what a command line may say
    network      classifier, attention, losses, base models (bitsandbytes), LoRA (PEFT), precision, what a network holds
    encoding     battles to batches: encoder, tokenizer, packed sequences, collator
    data         battles as rows: reader, schemas, text repair, near-duplicates, folds, mixtures, the demo's battles
    runtime      files, Hub, distributed processes, devices
"""

import logging
import warnings
from importlib import import_module

# tqdm asks for ipywidgets in a notebook that has none, on red ground. It draws its bars as text without them.
warnings.filterwarnings("ignore", message="IProgress not found")
# On a CPU with AVX512_BF16, bitsandbytes asks for the package kernels as soon as it is imported; nothing here uses it.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))

PACKAGES = (
    "serving",
    "publishing",
    "training",
    "judging",
    "evaluation",
    "settings",
    "network",
    "encoding",
    "data",
    "runtime",
)

# What users need, with the module that has it. They are imported when they are first asked for, because torch and
# transformers take seconds, and a command line is checked without them.
EXPORTS = {
    "Judge": "judging.judge",
    "PairwiseReward": "judging.rewards",
    "load_battles": "data.battles",
    "read_battles": "data.battles",
    "Gemma2ForPreference": "network.classifier",
    "Gemma3TextForPreference": "network.classifier",
    "LlamaForPreference": "network.classifier",
    "Qwen2ForPreference": "network.classifier",
}
__all__ = list(EXPORTS)


def __getattr__(name: str) -> object:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{EXPORTS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
