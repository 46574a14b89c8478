"""Models in Hugging Face's format: read into ours, wrapped as they are, and written back."""
