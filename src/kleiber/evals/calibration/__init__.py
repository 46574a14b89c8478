"""Calibration: whether the probabilities of predictions are right, and what abstaining on the unsure ones gains."""
