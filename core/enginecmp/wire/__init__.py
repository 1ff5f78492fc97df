"""What host and worker share: messages, shared memory, deadlines, and a guardian that ends what is left over."""
