"""The claims of the README, measured. Not part of any distribution; run with `make bench`."""
