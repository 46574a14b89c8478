"""What a run leaves on disk, and how it is read back. Imports no torch."""
