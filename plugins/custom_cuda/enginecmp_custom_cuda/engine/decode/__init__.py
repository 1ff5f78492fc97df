"""Steps: one token of each of a few sequences."""
