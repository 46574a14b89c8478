"""Data: sources of text, tokenizers, the token cache, samples and their order. Lightning and models are unknown here."""
