"""The small trained model as a file: made once, kept in the cache under its recipe's hash."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enginecmp.errors import ModelError
from enginecmp.models.known_files import cache_dir

if TYPE_CHECKING:
    from enginecmp_diffusion.training import Recipe

INSTALL = "pip install 'enginecmp-diffusion[train]'"


def write(path: str, quantization: str, seed: int, layers: int | None) -> None:
    """Write the trained model, training it where the cache does not have it; see `cmp_models`.

    Args:
        path: the .gguf file to write.
        quantization: tensor type of the matrices.
        seed: of weights, texts and masks.
        layers: None: a network of other layers would have to be trained anew.

    Raises:
        ModelError: other layers, or no library to train with.
    """
    if layers is not None:
        msg = f"expected diffusion-small with its own layers, got --layers {layers}; leave the option out"
        raise ModelError(msg)
    made = trained(recipe_of(seed))
    assert made is not None  # there was no end of time
    copy(made, Path(path), quantization)


def recipe_of(seed: int) -> Recipe:
    """Return what `cmp` trains.

    Raises:
        ModelError: no library to train with.
    """
    try:
        import tokenizers  # noqa: F401 # named before minutes go by

        from enginecmp_diffusion.training import Recipe
    except ImportError as error:
        msg = f"training needs {error.name}; install it: {INSTALL}"
        raise ModelError(msg) from error
    return Recipe(seed=seed)


def copy(made: Path, target: Path, quantization: str) -> None:
    """Write a trained file somewhere, its matrices in a tensor type.

    Raises:
        CmpError: it cannot be written, or not in that type.
    """
    from enginecmp.models.gguf_write import copy_file
    from enginecmp.models.quantize import quantize

    if quantization.upper() == "F32":
        copy_file(made, target)
    else:
        quantize(made, target, quantization)


def trained(recipe: Recipe, minutes: float = math.inf, threads: int = 0) -> Path | None:
    """Return the file of a recipe, trained now where the cache does not have it; None where the time was too short.

    Args:
        recipe: what to train.
        minutes: stop after that long and keep what is done; the next call goes on.
        threads: that compute; 0 is two, or one where the machine has no more.
    """
    name = f"diffusion-small-{recipe.sha256()[:12]}"
    output = cache_dir() / f"{name}.gguf"
    if output.exists():
        return output
    import torch

    from enginecmp_diffusion import corpus, file, training

    torch.set_num_threads(threads or min(2, len(os.sched_getaffinity(0))))
    checkpoint = cache_dir() / f"{name}.checkpoint"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def told(progress: training.Progress) -> None:
        print(
            f"step {progress.step}/{recipe.steps}  {progress.loss:.3f} nats a token  {progress.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    text = corpus.read_corpus(recipe.shape.vocabulary)
    network = training.train(recipe, text, checkpoint, told, 60 * minutes)
    if network is None:
        return None
    held_out = training.held_out_bound(network, text, recipe)
    version = ".".join(map(str, sys.version_info[:2]))
    description = (
        f"Masked diffusion, {recipe.steps} steps on Python {version}'s language reference and docstrings (PSF-2.0); "
        f"bound on texts held out {held_out:.3f} nats a token."
    )
    model = file.write(output, network, text, description)
    checkpoint.unlink(missing_ok=True)
    print(f"{description} sha256:{model.sha256}", file=sys.stderr)
    return output
