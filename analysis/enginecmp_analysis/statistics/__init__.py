"""Statistics that know nothing of engines: arrays in, estimates and p-values out."""
