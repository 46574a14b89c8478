"""Backbones with a head, and what one asks of them: counts, samples, a Hugging Face twin."""
