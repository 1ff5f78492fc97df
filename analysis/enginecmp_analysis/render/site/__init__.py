"""A static site over many runs: what `cmp report --site` writes."""
