"""One run: what was asked for, which engines take part, every launch in turn, and what was found."""
