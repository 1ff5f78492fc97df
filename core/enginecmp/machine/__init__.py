"""Facts about this machine: what it is, what limits it, how noisy it is."""
