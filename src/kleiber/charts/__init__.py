"""Figures and pages: the theme of every figure, and the HTML page that shows figures and tables."""
