"""Tokenizers: bytes, a byte-pair encoding trained on the data, and pretrained ones."""
