"""Which input tokens a prediction rests on, by several methods, and whether these may be believed."""
