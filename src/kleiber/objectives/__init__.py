"""One loss a file. An objective receives a model and a batch; it imports neither models nor data."""
