"""Measurements of a machine and of this engine's kernels on it; on the emulator only their correctness."""
