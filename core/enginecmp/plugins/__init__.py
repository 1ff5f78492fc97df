"""Find engine plugins, wherever they are installed, and say which of them are broken."""
