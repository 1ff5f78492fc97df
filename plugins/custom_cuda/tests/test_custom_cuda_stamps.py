"""Which of the plugin's test files need not run again depends on what the plugin imports, and on nothing else."""

from __future__ import annotations

import custom_cuda_stamps


def test_inputs_are_the_modules_that_are_imported_and_theirs() -> None:
    found = {str(path.relative_to(custom_cuda_stamps.CORE)) for path in custom_cuda_stamps.core_modules()}
    assert {"models/gguf_file.py", "models/gguf_keys.py", "testing/tiny_models.py", "types.py"} <= found
    assert "cli/run.py" not in found
