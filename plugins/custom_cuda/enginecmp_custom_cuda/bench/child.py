"""One part in a process of its own: python -m enginecmp_custom_cuda.bench.child SPEC.json."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import signal
import sys
import time
import traceback
from pathlib import Path

from .context import Context, Skip, one_line

PARENT_DEATH = 1
"""PR_SET_PDEATHSIG, from linux/prctl.h."""


def main(arguments: list[str]) -> int:
    """Run the part that a spec names."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
    spec = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    context = Context(spec)
    try:
        if context.plant == "raise":
            msg = "planted"
            raise RuntimeError(msg)
        if context.plant == "hang":
            time.sleep(3600)
        importlib.import_module(f"enginecmp_custom_cuda.bench.{spec['module']}").run(context)
    except Skip as reason:
        context.skipped(str(reason))
    except BaseException as error:  # a part may end in anything
        traceback.print_exc()
        context.failed(one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
