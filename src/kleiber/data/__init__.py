"""Data: sources of text, tokenizers, the token cache, samples and their order. It knows no model."""
