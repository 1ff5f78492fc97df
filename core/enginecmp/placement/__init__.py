"""Runs on other machines: which nodes there are, how one is reached, and what host and node say to each other."""
