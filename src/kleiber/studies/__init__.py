"""Analyses that turn a table of finished runs into laws, with intervals and limits; never imports torch."""
