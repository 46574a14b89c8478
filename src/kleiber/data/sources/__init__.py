"""Where text comes from: files, tables, the hub, the Python installation, synthetic recall tasks."""
