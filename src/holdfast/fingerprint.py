"""Which weights an anchor was taken at: a hash and small samples of every anchored tensor."""

import hashlib
import math
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

SAMPLED_ENTRIES = 64
SCATTERED_ENTRIES = 128
SUBNORMAL = 2**-24  # float16's smallest number: what its rounding may lose besides
CHUNK = 2**18  # entries at a time: float64 copies of so many stay in the processor's cache
WORD = 8  # bytes

Mark = tuple[Any, ...]
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weight -> its mark, and what was found at that mark


def fingerprint(weight: Tensor) -> dict[str, Any]:
    """What is stored of a weight.

    A weight that was seen before and is unchanged is not hashed again.

    Returns:
        sha256: of the exact bytes, row by row.
        dtype, shape: of the tensor.
        norm: Frobenius, summed in float64.
        sample: evenly spaced entries, in order.
        scattered: entries at places that follow no row or column, in order.
    """
    mark = _mark(weight)
    if mark is None:
        return _measured(weight)
    known = _known.get(weight)
    if known is None or known[0] != mark:
        known = _known[weight] = (mark, _measured(weight))
    return dict(known[1])


def _measured(weight: Tensor) -> dict[str, Any]:
    """See `fingerprint`; one pass, in chunks of the CPU's memory that are views where the weight lies there."""
    flat = weight.detach().reshape(-1)
    digest, norms = hashlib.sha256(), [0.0]
    for piece in _pieces(flat):
        digest.update(piece.view(torch.uint8).numpy().data)
        norms.append(float(piece.double().norm()))
    return {
        "sha256": digest.hexdigest(),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
        "norm": math.hypot(*norms),
        "sample": _sample(flat),
        "scattered": _scattered(flat).double().tolist(),
    }


def _pieces(flat: Tensor) -> Iterator[Tensor]:
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK].cpu()


def _sample(flat: Tensor) -> list[float]:
    stride = max(1, flat.numel() // SAMPLED_ENTRIES)
    return flat[::stride][:SAMPLED_ENTRIES].cpu().double().tolist()


def _scattered(flat: Tensor) -> Tensor:
    return flat[torch.tensor(_places(flat.numel()), dtype=torch.int64, device=flat.device)].cpu()


@cache
def _places(count: int) -> list[int]:
    """One place in each of 128 equal stretches of `count` entries; all places where they are no more.

    Python promises the same numbers from a seed in every version: files hold what lies there.
    """
    if count <= SCATTERED_ENTRIES:
        return list(range(count))
    drawn = random.Random(0)
    return [int((i + drawn.random()) * count / SCATTERED_ENTRIES) for i in range(SCATTERED_ENTRIES)]


def _mark(weight: Tensor) -> Mark | None:
    """What changes when the weight does, for a small part of the hash's price; None where nothing cheap tells.

    The version counter is not enough: what is written to `weight.data` passes it by, and PEFT merges so. So there
    is a sum of all bytes as whole numbers, modulo 2**64, which any one change shows in, and samples for those that
    change all entries so that the sum comes out the same (signs, powers of two).
    """
    flat = weight.detach()
    whole = flat.is_contiguous() and flat.numel() * flat.element_size() % WORD == 0
    if weight.is_inference() or not whole or flat.storage_offset() * flat.element_size() % WORD or not flat.numel():
        return None
    flat = flat.view(-1)
    total = int(flat.view(torch.int64).sum())
    bits = _scattered(flat).view(torch.uint8).numpy().tobytes()
    return (weight._version, weight.data_ptr(), weight.dtype, weight.shape, total, bits)


def identical(weight: Tensor, known: dict[str, Any]) -> bool:
    """Whether the weight is the anchored one: the same bytes, or the same numbers cast to another dtype.

    The latter as far as norm and samples tell. Where each entry differs by at most r |w| + s, norms differ by at
    most r ||w|| + s sqrt(n).
    """
    mine = fingerprint(weight)
    if mine["sha256"] == known["sha256"]:
        return True
    # A cast model is the same model, each entry within both dtypes' rounding; an edited one in the same dtype is not.
    dtypes = [getattr(torch, one["dtype"]) for one in (mine, known)]
    if dtypes[0] == dtypes[1] or mine["shape"] != known["shape"] or not all(d.is_floating_point for d in dtypes):
        return False
    ours, theirs = _samples(mine, known)
    rounding = sum(torch.finfo(dtype).eps / 2 for dtype in dtypes)
    lost = SUBNORMAL * math.prod(known["shape"]) ** 0.5
    return bool(((ours - theirs).abs() <= rounding * theirs.abs() + SUBNORMAL).all()) and (
        abs(mine["norm"] - known["norm"]) <= rounding * known["norm"] + lost
    )


def alike(weight: Tensor, known: dict[str, Any], tolerance: float = 1e-4) -> bool:
    """Whether sampled entries and norm agree, relative to the size of a typical entry."""
    mine = fingerprint(weight)
    if mine["shape"] != known["shape"]:
        return False
    ours, theirs = _samples(mine, known)
    scale = theirs.abs().max().clamp_min(1e-12)
    return bool(((ours - theirs).abs() <= tolerance * scale).all()) and (
        abs(mine["norm"] - known["norm"]) <= tolerance * max(known["norm"], 1e-12)
    )


def _samples(mine: dict[str, Any], known: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Entries of both at the same places, in float64; files that hold no scattered ones are compared by the others."""
    names = [name for name in ("sample", "scattered") if name in known]
    ours, theirs = (
        torch.tensor([entry for name in names for entry in one[name]], dtype=torch.float64) for one in (mine, known)
    )
    return ours, theirs
