"""kleiber: a Lightning + Hydra laboratory for language-model science."""
