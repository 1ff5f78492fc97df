"""What happens after loading: pages, steps, prompts, batching, sampling, and the session that ties them together."""
