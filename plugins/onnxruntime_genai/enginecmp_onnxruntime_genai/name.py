"""The engine's name, in hooks and in messages."""

ENGINE = "onnxruntime_genai"
