"""What a model remembers of its training text: canaries, verbatim text, and which samples it was trained on."""
