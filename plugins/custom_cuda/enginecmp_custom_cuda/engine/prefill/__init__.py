"""Prompts: chunks of them through every layer."""
