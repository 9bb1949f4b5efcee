"""Worker processes, a bounded number at a time: jobs go in, events come out, and a death is an event too."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any

from holdfast.deaf import ignoring_interrupts
from holdfast.errors import HoldfastError
from holdfast.frontier import worker
from holdfast.frontier.trial import Job

CHECK = -1  # key of the check


@dataclass(frozen=True)
class Event:
    """What a worker told, or its death: `kind` is "step", "done", "failed" or "died"."""

    kind: str
    key: int
    value: Any = None  # the row, the message, or how it died
    step: int = 0
    steps: int = 0


class _Worker:
    """A process and the job that it is at."""

    def __init__(self, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.connection: Connection = ours
        self.process = context.Process(target=worker.main, args=(theirs, device), daemon=True)
        with ignoring_interrupts():
            self.process.start()
        theirs.close()  # so that the end of the process ends the connection
        self.device = device
        self.key: int | None = None


class Pool:
    """Up to `count` workers, started when there is something for them to do.

    Args:
        count: processes at a time.
        devices: what each may see of the accelerators, in turn; empty leaves it to the environment.
    """

    def __init__(self, count: int, devices: Sequence[str] = ()) -> None:
        self.count, self.devices = count, list(devices)
        self.workers: list[_Worker] = []

    @property
    def busy(self) -> list[int]:
        """The keys of the jobs under way."""
        return [worker.key for worker in self.workers if worker.key is not None]

    @property
    def free(self) -> int:
        """How many more jobs can be taken."""
        return self.count - len(self.busy)

    def send(self, job: Job | list[dict[str, Any]], key: int) -> None:
        """Have an idle worker do a job: a run, or a check of recipes."""
        idle = next((w for w in self.workers if w.key is None and w.process.is_alive()), None)
        if idle is None:
            self.workers = [w for w in self.workers if w.key is not None]
            used = [w.device for w in self.workers]
            device = min(self.devices, key=used.count) if self.devices else None
            idle = _Worker(device)
            self.workers.append(idle)
        idle.key = key
        with contextlib.suppress(OSError):  # it has just died: its end is the next event
            idle.connection.send(job)

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened, waiting up to `timeout` seconds for it."""
        places = {worker.connection: worker for worker in self.workers if worker.key is not None}
        for ready in connections.wait(list(places), timeout) if places else ():
            yield from self._told(places[ready])  # type: ignore[index]

    def _told(self, worker: _Worker) -> Iterator[Event]:
        key = worker.key
        assert key is not None
        try:
            kind, _, *said = worker.connection.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.process.join()
            worker.connection.close()
            yield Event("died", key, _how(worker.process.exitcode))
            return
        if kind == "step":
            yield Event(kind, key, step=said[0], steps=said[1])
        else:
            worker.key = None
            yield Event(kind, key, said[0])

    def close(self) -> None:
        """End all workers; what they were at goes on from its last checkpoint another time."""
        for one in self.workers:
            one.process.terminate()
        for one in self.workers:
            one.process.join(5)
            if one.process.is_alive():
                one.process.kill()
                one.process.join()
            one.connection.close()
        self.workers.clear()


def checked(pool: Pool, recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """Check recipes in a worker: see `holdfast.frontier.trial.check`.

    Raises:
        HoldfastError: what would stop the runs.
    """
    pool.send(recipes, CHECK)
    while True:
        for event in pool.events(1.0):
            if event.kind == "done":
                return event.value
            raise HoldfastError(event.value if event.kind == "failed" else f"the check's process died: {event.value}")


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def default_count() -> tuple[int, list[str]]:
    """Runs at a time on this machine, and the devices they share: one for each GPU, or else for each core."""
    import torch

    if not torch.cuda.is_available():
        return os.cpu_count() or 1, []
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    count = torch.cuda.device_count()
    return count, (visible or [str(i) for i in range(count)]) if count > 1 else []
