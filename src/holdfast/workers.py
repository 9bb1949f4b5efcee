"""Rows of a comparison in separate processes, one thread each: two threads of one run would wait for each other."""

import contextlib
import multiprocessing
import os
import queue as queues
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from holdfast.comparison import ComparisonSettings, Hold, Workload
from holdfast.deaf import ignoring_interrupts
from holdfast.errors import HoldfastError

Job = tuple[Hold, int]  # a way of holding on, and a seed
OnStep = Callable[[int, int, int], None]  # job, step, steps
OnRow = Callable[[int, dict[str, Any]], None]  # job, row

_process: dict[str, Any] = {}  # what a worker process keeps between its jobs


def run(
    common: ComparisonSettings,
    work: Workload,
    jobs: list[Job],
    *,
    on_step: OnStep,
    on_row: OnRow,
    processes: int | None = None,
) -> list[dict[str, Any]]:
    """One row per job, in the jobs' order; errors of a worker are raised here.

    Raises:
        HoldfastError: a worker that died, and whatever a run raises.
    """
    count = processes or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(min(count, len(jobs)), context, _start, (common, work, queue))
        try:
            with ignoring_interrupts():  # Ctrl-C reaches the workers too; only this process answers it
                futures = [pool.submit(_row, index, job) for index, job in enumerate(jobs)]
            _follow(futures, queue, on_step, on_row)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise HoldfastError(
                "a run's process died",
                causes=["the machine has too little memory for so many runs at a time", "something ended it"],
                remedy="fewer at a time: --processes 1",
            ) from error
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # what it was at is lost anyway
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow(futures: list[Future], queue: Any, on_step: OnStep, on_row: OnRow) -> None:
    reported: set[int] = set()
    while len(reported) < len(futures):
        with contextlib.suppress(queues.Empty):
            on_step(*queue.get(timeout=0.2))
        for index, future in enumerate(futures):
            if future.done() and index not in reported:
                on_row(index, future.result())
                reported.add(index)


def _start(common: ComparisonSettings, work: Workload, queue: Any) -> None:
    from tqdm import tqdm
    from transformers.utils import logging

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, left behind when the process is ended
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    _process.update(common=common, work=work, queue=queue, contenders={})


def _row(index: int, job: Job) -> dict[str, Any]:
    from holdfast.contender import Contender

    hold, seed = job
    contenders, queue = _process["contenders"], _process["queue"]
    if seed not in contenders:
        contenders.clear()  # one seed's anchors and text at a time
        contenders[seed] = Contender(_process["common"], _process["work"], seed)

    def on_step(step: int, steps: int) -> None:
        if step % 5 == 0 or step == steps:
            queue.put((index, step, steps))

    return contenders[seed].row(hold, on_step)
