"""A file of a shape, with random weights, for engines that read files: written beside the first parts of a run.

Run as `python -m enginecmp_custom_cuda.bench.model_file SHAPE PATH`, on processors that the parts of the GPU leave.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from enginecmp import read_gguf
from enginecmp.models.synth import write_synth

VOCABULARY_OF = "tiny-llama"
"""Large shapes borrow a vocabulary, which would otherwise be the embedded model's: a download."""


def main(shape: str, path: Path) -> None:
    """Write the file under another name and rename it: who waits for it sees all of it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        words = Path(scratch) / "words.gguf"
        write_synth(words, like=VOCABULARY_OF)
        made = Path(scratch) / "model.gguf"
        write_synth(made, like=shape, quantization="Q8_0", tokenizer=read_gguf(words))
        made.rename(path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
