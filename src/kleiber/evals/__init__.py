"""Evaluations: a model and samples in, named numbers out. They train nothing and know no run."""
