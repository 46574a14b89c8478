"""Retrieval at evaluation: next tokens from nearest neighbors (kNN-LM), and text in front of the prompt."""
