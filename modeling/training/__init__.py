"""Training a member: setup, Trainer, checkpoints, memory plan, the record of a run. Also making a base."""
