"""Ctrl-C reaches every process of a terminal; where one of them answers it, the others must not."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started inside the block are born deaf to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
