"""Comparisons of runs: tables of runs as rows, differences with intervals, Pareto frontiers and figures."""
