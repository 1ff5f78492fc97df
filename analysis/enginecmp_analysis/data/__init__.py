"""Files to numbers: runs are read, checked, and reduced to one value a launch."""
