"""Models as Hugging Face folders: read strictly, hashed, and converted from GGUF and to it without losing a bit."""
