"""A device, a GPU or the emulator, behind one API: memory, modules, launches, graphs, events."""
