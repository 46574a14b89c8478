"""Scaling laws: fitting, intervals, tests of fit, backtests and predictions."""
