"""A worker process: takes jobs from its connection, one after the other, and tells how they go."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection as connections
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.frontier import trial

EVERY = 0.5  # seconds between two tellings of a step
LOG = "run.log"  # in a run's folder: what it said


def main(connection: Connection, device: str | None) -> None:
    """Serve until the connection ends; end with the parent, however that ends.

    What is told is ("step", key, step, steps), and once for each job ("done", key, value) or ("failed", key, message).

    Args:
        connection: jobs come in, what is told goes out.
        device: what CUDA_VISIBLE_DEVICES is to be; None leaves it.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _settle()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_done(job, connection))


def _done(job: Any, connection: Connection) -> tuple[str, int, Any]:
    try:
        if not isinstance(job, trial.Job):
            return "done", -1, trial.check(job)
        with _logged(job.folder):
            try:
                return "done", job.key, trial.run(job, _telling(connection, job.key))
            except Exception:
                traceback.print_exc()
                raise
    except HoldfastError as error:
        return "failed", job.key if isinstance(job, trial.Job) else -1, str(error)
    except Exception as error:  # one run's bug or full memory is no other run's end
        return "failed", job.key if isinstance(job, trial.Job) else -1, f"{type(error).__name__}: {error}"


def _telling(connection: Connection, key: int) -> trial.OnStep:
    last = 0.0

    def on_step(step: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY or step == steps:
            last = now
            connection.send(("step", key, step, steps))

    return on_step


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Everything that is printed inside the block goes into the folder's log, also by libraries below Python."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


def _settle() -> None:
    """One thread, and libraries that keep to themselves."""
    import torch
    from tqdm import tqdm
    from transformers.utils import logging

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, left behind when the process is ended
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connections.wait([parent.sentinel])
        os._exit(1)  # nobody is left to tell; the last checkpoint is whole
