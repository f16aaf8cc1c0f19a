"""Training one member: setup, Trainer, checkpoints, memory plan, the record of a run; and making a base."""
