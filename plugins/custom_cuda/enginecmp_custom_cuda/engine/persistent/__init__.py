"""Decode at batch 1 by one persistent kernel: its schedule, the schedule's proof, and its launches."""
