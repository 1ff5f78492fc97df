"""From a GGUF file's tensors to packed matrices on the device."""
