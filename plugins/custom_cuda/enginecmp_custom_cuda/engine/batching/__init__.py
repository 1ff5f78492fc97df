"""Many sequences: which tokens are computed next, and by which kernels."""
