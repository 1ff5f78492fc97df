"""Runs in object storage: kept there block by block, and brought back whole or not at all.

Below a run's prefix lie parts, immutable and named by their SHA-256, and run.json, which says which parts make which
file. It is written last and replaced in one piece: who reads it sees a run as it was at the end of a block, and no
object that was cut off is part of any.
"""
