"""Which weights an anchor was taken at: a hash and a small sample of every anchored tensor."""

import hashlib
from typing import Any

import torch
from torch import Tensor

SAMPLED_ENTRIES = 64
SUBNORMAL = 2**-24  # float16's smallest number: what its rounding may lose besides


def fingerprint(weight: Tensor) -> dict[str, Any]:
    """The exact bytes as a hash; evenly spaced entries and the norm, for comparing within rounding."""
    raw = weight.detach().contiguous().cpu()
    digest = hashlib.sha256(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"").hexdigest()
    flat = raw.flatten().double()
    stride = max(1, flat.numel() // SAMPLED_ENTRIES)
    return {
        "sha256": digest,
        "dtype": str(raw.dtype).removeprefix("torch."),
        "shape": list(raw.shape),
        "norm": float(flat.norm()),
        "sample": flat[::stride][:SAMPLED_ENTRIES].tolist(),
    }


def identical(weight: Tensor, known: dict[str, Any]) -> bool:
    """Whether the weight is the anchored one: the same bytes, or the same numbers cast to another dtype."""
    mine = fingerprint(weight)
    if mine["sha256"] == known["sha256"]:
        return True
    # A cast model is the same model, each entry within both dtypes' rounding; an edited one in the same dtype is not.
    dtypes = [getattr(torch, one["dtype"]) for one in (mine, known)]
    if dtypes[0] == dtypes[1] or mine["shape"] != known["shape"] or not all(d.is_floating_point for d in dtypes):
        return False
    ours, theirs = (torch.tensor(one["sample"], dtype=torch.float64) for one in (mine, known))
    rounding = sum(torch.finfo(dtype).eps / 2 for dtype in dtypes)
    return bool(((ours - theirs).abs() <= rounding * theirs.abs() + SUBNORMAL).all())


def alike(weight: Tensor, known: dict[str, Any], tolerance: float = 1e-4) -> bool:
    """Whether sampled entries and norm agree, relative to the size of a typical entry."""
    mine = fingerprint(weight)
    if mine["shape"] != known["shape"]:
        return False
    ours, theirs = (torch.tensor(one["sample"], dtype=torch.float64) for one in (mine, known))
    scale = theirs.abs().max().clamp_min(1e-12)
    return bool(((ours - theirs).abs() <= tolerance * scale).all()) and (
        abs(mine["norm"] - known["norm"]) <= tolerance * max(known["norm"], 1e-12)
    )
