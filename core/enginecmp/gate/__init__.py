"""Is it the same distribution, and how good is its text? Asked before anything is timed."""
