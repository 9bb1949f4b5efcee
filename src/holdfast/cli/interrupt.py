"""Ctrl-C and the scheduler's terminate: everything temporary is cleaned up, and the exit status tells which it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The user or the system asked to stop; not an Exception, so that nothing on the way out swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # the shell's convention
        self.remedy = "run the command again"
        self.kept: object = None  # where what was done so far lies


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted inside the block; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        raise Interrupted(number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
