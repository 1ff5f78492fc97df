"""Weights files: found, fetched, checked, converted, invented."""
