"""Models that read every battle both ways. Read the modules in the order of a battle's path:

files (tables, folders) -> schemas (a row in, texts and label out) -> checks (a source, chunk by chunk)
-> battles (rows) -> duplicates (near-equal texts) -> folds (held out together) -> mixing (sources)
-> cleaning (Unicode) -> boundaries (where text may be cut) -> tokenizing (templates) -> encoding (ids)
-> collation (batches) -> audit (cuts and repairs) -> arguments (a run's settings) -> losses (cross-entropy,
distillation) -> classifier (network and head) -> bases (backbones) -> probes (battles that show a change)
-> adapters (LoRA) -> loading (members) -> launch (processes) -> memory (bytes) -> checkpoints (restarts)
-> training (the Trainer) -> inference (batches, shards) -> judge (members averaged) -> pseudolabels (verdicts as
labels) -> metrics (figures with intervals). A module imports only from those before it.
"""
