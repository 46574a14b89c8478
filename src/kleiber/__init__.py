"""kleiber: a Lightning + Hydra laboratory for language-model science."""

__version__ = "0.1.0"
