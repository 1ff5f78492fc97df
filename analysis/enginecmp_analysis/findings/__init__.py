"""What the data say beyond metrics: drift, leaks, growth, clocks, caches."""
