"""Ways not to forget: one method each, around any objective, adapter and model."""
