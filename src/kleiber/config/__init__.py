"""Configs: composing one from a command line, checking it, and building objects from it. Imports no torch."""
