"""The in-house CUDA engine of enginecmp: kernels compiled where they run, and run on the CPU where they are tested."""
