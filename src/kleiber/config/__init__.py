"""What was asked for: composing a config, checking it, and building objects from it. Imports no torch."""
