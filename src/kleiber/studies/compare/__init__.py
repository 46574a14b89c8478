"""Comparisons of arms: their rows, intervals, frontiers and figures."""
