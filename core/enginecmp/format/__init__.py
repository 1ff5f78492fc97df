"""What crosses a boundary: the structs of the results format, names of files, flags and phases, and their readers."""
