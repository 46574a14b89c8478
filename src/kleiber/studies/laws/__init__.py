"""Scaling laws: fitting, confidence intervals, tests of fit, backtests and predictions."""
