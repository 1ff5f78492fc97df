"""Tuning: which settings of an engine are tried, and where the best ones of a machine and a model are kept."""
