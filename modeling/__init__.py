"""Models that read every battle both ways. Read the modules in the order of a battle's path:

files (tables, folders) -> battles (rows) -> encoding (ids) -> arguments (a run's settings) -> losses (cross-entropy)
-> classifier (network and head) -> bases (backbones) -> probes (battles that show a change) -> adapters (LoRA)
-> loading (members) -> launch (processes) -> memory (bytes) -> checkpoints (restarts) -> training (the Trainer)
-> inference (batches, shards) -> judge (members averaged) -> metrics (figures with intervals). A module imports only
from those before it.
"""
