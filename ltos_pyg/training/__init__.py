"""Training: the loop, evaluation, checkpoints, logs and the run folder."""
