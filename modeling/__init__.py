"""Bothways: models that read every battle both ways. Read the modules in the order of a battle's path:

arguments (a run's settings) -> battles (rows) -> encoding (ids) -> losses -> classifier (network and head)
-> loading (bases, adapters, members) -> inference (batches, shards) -> judge (members averaged) -> metrics.
A module imports only from those before it.
"""
