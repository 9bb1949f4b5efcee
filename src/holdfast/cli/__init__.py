"""The command line: one file per command. Nothing heavy is imported before a command runs."""

import os
import sys


def main() -> None:
    """Run `holdfast`; a mistake in what was asked for is one clear message and a non-zero exit."""
    # Idle OpenMP threads sleep instead of spinning: two processes on two cores otherwise slow each other severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from holdfast.cli.app import app
    from holdfast.errors import HoldfastError

    try:
        app()
    except HoldfastError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("Interrupted. Nothing half-written is left; `holdfast tune --resume` goes on from its checkpoint.", 130)
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _fail(
            f"could not write {error.filename or ''}: {error.strerror}\n  remedy: free space or choose another --out",
            1,
        )


def _fail(message: str, status: int) -> None:
    print(f"holdfast: {message}", file=sys.stderr)
    sys.exit(status)
