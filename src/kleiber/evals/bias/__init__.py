"""Social bias of a language model: how often it finds a stereotype more likely than its counterpart."""
