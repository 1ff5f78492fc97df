"""For authors of engine plugins: a conformance suite and a fake engine.

Run the suite against an installed engine with `pytest --pyargs enginecmp.testing --engine NAME`. The fake
engine (`CMP_PLUGINS=enginecmp.testing.fake_engine`) computes a deterministic nonsense model on a clock of its
own and misbehaves on request; it drives the whole command line in tests without a native engine.

For a plugin's own tests: `tiny_models` (files of random weights, and variants of them), `float64` (the oracle that the
suite uses too) and `sessions` (loaded models in the test's process).
"""
