"""Running sums away from the device: in the CPU's memory, or in files that are mapped into it."""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from holdfast.errors import HoldfastError

Place = Literal["cpu", "disk"]
PLACES = (None, "cpu", "disk")


def zeros(like: Tensor, place: Place) -> Tensor:
    """Zeros of the shape and type of a tensor, which may be of the meta device.

    Raises:
        HoldfastError: no space on the disk.
    """
    return torch.zeros_like(like, device="cpu") if place == "cpu" else _mapped(like.shape, like.dtype)


@contextmanager
def beside(rows: Tensor, total: Tensor, zero: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """A sum on the rows' device to add to: the total itself, or an empty one that the total gets afterwards."""
    if total.device == rows.device:
        yield total
        return
    part = zero(rows)
    yield part
    total += part.to(total.device)


def _mapped(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros in a file of the temporary folder (TMPDIR), mapped into memory.

    The file loses its name as soon as it is mapped: it goes with the tensor, however the process ends.
    """
    count = math.prod(shape)
    handle, path = tempfile.mkstemp(prefix="holdfast-")
    try:
        _reserve(handle, count * dtype.itemsize)
        return torch.from_file(path, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise HoldfastError(
            f"no room for {count * dtype.itemsize / 1e9:.2f} GB of running sums in {tempfile.gettempdir()}: {error}",
            remedy='set TMPDIR to a folder on a larger disk, give a memory budget, or use offload="cpu"',
        ) from error
    finally:
        os.close(handle)
        os.unlink(path)


def _reserve(handle: int, size: int) -> None:
    """Make the file so large, its blocks included: writing into a hole on a full disk would kill the process."""
    if sys.platform == "linux" and size:
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)
