"""What the kernels are held to: the same arithmetic in float64, written for reading and not for speed."""
