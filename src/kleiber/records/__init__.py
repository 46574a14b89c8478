"""The files that a run leaves on disk, and reading them back. Imports no torch."""
