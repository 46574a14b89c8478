"""Optimizers beyond AdamW, each over the groups of `optim.parameter_groups`: one class, one file."""
