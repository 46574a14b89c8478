"""Layers and losses: tensors in, tensors out. Nothing here knows a batch, a configuration or a trainer."""
