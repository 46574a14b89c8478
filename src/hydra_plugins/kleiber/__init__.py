"""Hydra plugins of kleiber (Hydra finds plugins nowhere else). Thin: what they do is in kleiber.launch.sweep."""
