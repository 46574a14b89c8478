"""Whether a model follows instructions that a rule can verify."""
