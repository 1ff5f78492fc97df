"""`python -m enginecmp_diffusion`: train the small model, bound perplexity, tell where denoising takes less time."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from enginecmp.errors import CmpError
from enginecmp.format.text import plain, visible


def main(arguments: list[str]) -> int:
    """Do what the verb says; every expected error is one line on stderr and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m enginecmp_diffusion", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train the small model, or go on where that was stopped; print its file")
    train.add_argument("-o", "--output", type=Path, help="write this .gguf file as well as the one in the cache")
    train.add_argument("--seed", type=int, default=0, help="of weights, texts and masks (default: 0)")
    train.add_argument("--threads", type=int, default=0, help="that compute (default: two)")
    train.add_argument("--minutes", type=float, default=math.inf, help="stop after that long; the next call goes on")
    train.set_defaults(verb=_train)
    bound = verbs.add_parser("bound", help="bound the perplexity of a diffusion model by what engines score")
    bound.add_argument("--model", required=True, help="name or path, as of cmp run")
    bound.add_argument("--engines", required=True, help="as of cmp run: a list")
    bound.add_argument("--threads", default="auto", help="that compute (default: auto)")
    bound.add_argument("--texts", type=int, default=24, help="texts of 128 tokens (default: 24)")
    bound.add_argument("--draws", type=int, default=8, help="masks of each text (default: 8)")
    bound.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")
    bound.set_defaults(verb=_bound)
    overtake = verbs.add_parser("overtake", help="tell in how few steps denoising beats one token after the other")
    overtake.add_argument("run", type=Path, help="folder of a run of the scenario diffusion")
    overtake.set_defaults(verb=_overtake)
    asked = parser.parse_args(arguments)
    try:
        code: int = asked.verb(asked)
    except CmpError as error:
        print(f"enginecmp-diffusion: {plain(str(error), 2000)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def _train(asked: argparse.Namespace) -> int:
    from enginecmp_diffusion.trained import copy, recipe_of, trained

    made = trained(recipe_of(asked.seed), asked.minutes, asked.threads)
    if made is None:
        print("not done yet; the same command goes on", file=sys.stderr)
        return 3
    if asked.output is not None:
        copy(made, asked.output, "F32")
    print(asked.output or made)
    return 0


def _bound(asked: argparse.Namespace) -> int:
    from enginecmp_diffusion.bound import bounds, table

    for line in table(bounds(asked.model, asked.engines, asked.threads, asked.texts, asked.draws, asked.seed)):
        print(visible(line))
    return 0


def _overtake(asked: argparse.Namespace) -> int:
    from enginecmp_diffusion.overtake import read, table

    for line in table(read(asked.run)):
        print(visible(line))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
