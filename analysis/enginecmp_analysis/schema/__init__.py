"""What leaves the analysis: the structs behind every `--json`. Nothing here computes."""
