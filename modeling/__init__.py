"""Models that read every battle both ways: `from modeling import Judge, load_battles, Gemma2ForPreference`.

Read the modules in the order of a battle's path:

choices (of settings) -> paths (what a name leads to) -> files (tables, folders) -> hub (folders from and to the Hub) ->
cleaning (Unicode) -> conversations (turns into one text) -> schemas (a row in, texts and label out) -> checks (a
source, chunk by chunk) -> battles (rows) -> duplicates (near-equal texts) -> folds (held out together) -> mixing
(sources) -> boundaries (where text may be cut) -> tokenizing (templates) -> encoding (ids) -> packing (readings without
padding) -> collation (batches) -> audit (cuts and repairs) -> options (what scripts share) -> arguments (a run's
settings) -> prediction_arguments (of a reading judge) -> flags (by name and type) -> recipes (YAML files) -> usage
(what --help prints) -> starting (of a script) -> parsing (YAML and flags) -> launch (processes) -> losses
(cross-entropy, distillation) -> devices (their memory) -> precision (chosen and set) -> attention (inside a pack) ->
classifier (network and head) -> bases (backbones) -> probes (battles that show a change) -> adapters (LoRA) -> members
(their folders) -> loading (members that read) -> merging (adapters into weights) -> memory (bytes) -> checkpoints
(restarts) -> training (the Trainer) -> inference (packs, shards) -> resampling (intervals) -> metrics (figures of
predictions) -> calibration (honest probabilities) -> verdicts (a row per battle) -> readings (which are made, and when)
-> judge (members averaged) -> cascade (judges of growing cost) -> predicting (in the time there is) -> pseudolabels
(verdicts as labels) -> pool (labelled in parts) -> baselines (what to beat) -> biases (order, length) -> ratings
(models ranked) -> sections (tables as text) -> reports (all that is known of predictions) -> calibrating (on which
battles) -> scoring (judge or predictions) -> figures (pictures of it) -> pages (the same as HTML) -> provenance (what a
member says of its run) -> markdown (text that stays text) -> languages (their codes) -> licences (what names say of
them) -> limits (what figures do not show) -> cards (model cards) -> staging (a folder as it will stand on the Hub) ->
publishing (what goes there) -> uploads (as asked for) -> quantizing (a base made and checked) -> setup (of a training
run) -> saving (a member of it) -> serving (a judge for many) -> web (behind a page) -> page (in Gradio) -> doctor (what
works here) -> cli (the command `bothways`) -> turns (ways in turn) -> notebook (the original's way) -> peers (other
packages) -> speed (prediction, training) -> growth (cost against size) -> second_readings (accuracy against seconds) ->
encoding_speed (ids) -> streaming (a pool's memory) -> tables (figures as text) -> plots (and as pictures) -> questions
(of benchmark.py). A module imports only from those before it.
"""

from importlib import import_module

# What users need, with the module that has it. They are imported when they are first asked for, because torch and
# transformers take seconds, and a command line is checked without them.
EXPORTS = {
    "Judge": "judge",
    "load_battles": "battles",
    "Gemma2ForPreference": "classifier",
    "Gemma3TextForPreference": "classifier",
    "LlamaForPreference": "classifier",
    "Qwen2ForPreference": "classifier",
}
__all__ = list(EXPORTS)


def __getattr__(name: str) -> object:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{EXPORTS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
