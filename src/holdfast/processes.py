"""The processes that torchrun started, as one group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from holdfast.measuring.ranks import PeerError


@contextmanager
def group() -> Iterator[bool]:
    """The processes that torchrun started, as one group: whether this one is to write and print.

    Without torchrun, and where there is a group already, nothing is set up.

    Raises:
        PeerError: the others are through, and one of them ended in an error.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and not dist.is_initialized()
    if started:
        accelerated = torch.cuda.is_available()
        if accelerated:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if accelerated else "gloo")
    try:
        yield not dist.is_initialized() or dist.get_rank() == 0
        if started:
            _wait()
    finally:
        if started:
            dist.destroy_process_group()


def _wait() -> None:
    """Until all ranks are here: one that leaves early can abort another's last exchange."""
    try:
        dist.barrier()
    except RuntimeError as error:
        raise PeerError("another rank ended in an error; it has printed its own message") from error
