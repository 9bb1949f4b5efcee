"""The command line: one file per command. Nothing heavy is imported before a command runs."""

import os
import sys
from typing import NoReturn


def main() -> None:
    """Run `holdfast`; a mistake in what was asked for is one clear message and a non-zero exit."""
    # Idle OpenMP threads sleep instead of spinning: two processes on two cores otherwise slow each other severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from holdfast.cli.app import app
    from holdfast.cli.interrupt import Interrupted, interruptible
    from holdfast.errors import HoldfastError

    try:
        with interruptible():
            app()
    except HoldfastError as error:
        _fail(str(error), 1)
    except Interrupted as stop:
        left = "nothing half-written is left" if stop.kept is None else f"what was done so far is in {stop.kept}"
        _fail(f"interrupted ({stop}); {left}\n  remedy: {stop.remedy}", stop.status)
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        _fail(explained, 1)


def _explained(error: Exception) -> str | None:
    """A message for what the machine, not the program, has too little of; None for anything else."""
    from holdfast.files import is_about_the_disk

    if is_about_the_disk(error):
        where = getattr(error, "filename", None) or "a file"
        return f"could not read or write {where}: {error}\n  remedy: choose another --out, or free some space"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return "out of memory\n  remedy: lower --batch-size or --length, or close what else uses the memory"
    return None


def _fail(message: str, status: int) -> NoReturn:
    print(f"holdfast: {message}", file=sys.stderr)
    sys.exit(status)
