"""Repetition and diversity of the text that a model generates, beside those of held-out text."""
