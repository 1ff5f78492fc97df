"""The engine's side: the process that holds one engine, drives its hooks and reads the clock."""
