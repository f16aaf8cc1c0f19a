"""Battles as rows: reading, schemas, text repair, near-duplicates, folds, mixtures and the demo's battles."""
