"""Sources of data: files, tables, the Hugging Face hub, the Python installation, and synthetic recall tasks."""
