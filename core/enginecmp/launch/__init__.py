"""The host's side of one engine process: how it is started, what is said to it, how it ends."""
