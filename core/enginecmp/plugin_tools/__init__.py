"""Make a plugin, check it, and keep it in an environment of its own."""
