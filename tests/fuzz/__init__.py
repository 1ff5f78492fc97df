"""Damaged input for everything that reads what others wrote: `make fuzz`, or `python -m fuzz --help` in tests/.

A module of this folder offers a tuple `TARGETS` of `runner.Target`; nothing else has to be registered.
"""
