"""The writing side of the results format: runs, saved baselines, files that are replaced whole."""
