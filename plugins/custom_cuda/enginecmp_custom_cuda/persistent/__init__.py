"""Decode at batch 1 by one resident kernel: its schedule, the schedule's proof, and its launches."""
