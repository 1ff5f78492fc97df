"""Weights files: found, fetched, checked, converted, synthesized."""
