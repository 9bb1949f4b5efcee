"""What can be asked of an anchor's estimation, and what comes out of it: refused where it would mean nothing."""

from typing import Any

import torch

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.offload import PLACES
from holdfast.curvature.statistic import Reading
from holdfast.errors import HoldfastError
from holdfast.likelihood import FISHERS
from holdfast.rows.origin import PER


def check_options(fisher: str, draws: int, per: str, fraction: float, source: Any, kind: type[Curvature]) -> None:
    """Raise HoldfastError for options that are unknown or do not go together."""
    if fisher not in FISHERS:
        raise HoldfastError(f"fisher={fisher!r}", wanted=f"one of {', '.join(FISHERS)}")
    if per not in PER:
        raise HoldfastError(f"per={per!r}", wanted=f"one of {', '.join(PER)}")
    if draws < 1 or (draws > 1 and fisher != "sampled"):
        raise HoldfastError(f"draws={draws} with fisher={fisher!r}", wanted='1, or more with fisher="sampled"')
    if per == "sequence" and fraction < 1:
        raise HoldfastError(
            "per='sequence' sums over all positions of a sequence, and fraction leaves some out",
            remedy="leave fraction at 1, or use per='token'",
        )
    if not kind.squares and (draws > 1 or fraction < 1 or fisher == "exact"):
        raise HoldfastError(
            f"curvature {kind.kind!r} averages gradients without squaring them, and draws={draws}, "
            f"fraction={fraction}, fisher={fisher!r} weigh them for squares",
            wanted='draws=1, fraction=1 and fisher="sampled" or "data"',
        )
    if not 0 < fraction <= 1:
        raise HoldfastError(f"fraction={fraction}", wanted="a share of the positions, above 0 and at most 1")
    if kind.statistics() and source is None:
        raise HoldfastError(
            f"curvature {kind.kind!r} is measured on source data, and none was given",
            remedy="pass batches of old data, text sampled from the model itself, or ask for curvature='identity'",
        )
    if not kind.statistics() and source is not None:
        raise HoldfastError(
            f"curvature {kind.kind!r} needs no source data, and some was given", remedy="leave the source out"
        )


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise HoldfastError for a precision of the rows that gradients of a mean loss would vanish in."""
    if dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
        raise HoldfastError(
            f"dtype={dtype}",
            wanted="None, torch.bfloat16, torch.float32 or torch.float64",
            causes=["float16 ends at 6e-8: squares of gradients fall below it"],
        )


def check_keep(keep: int, kind: type[Curvature]) -> None:
    """Raise HoldfastError where a number of examples is asked for and none are kept."""
    if keep != Reading().keep and not kind.keeps:
        raise HoldfastError(
            f"keep={keep} is how many examples are stored, and curvature {kind.kind!r} stores none",
            remedy="leave it out, or choose curvature='samples' or 'samples-joint'",
        )


def check_place(offload: str | None) -> None:
    """Raise HoldfastError for a place that running sums can't be kept in."""
    if offload not in PLACES:
        raise HoldfastError(f"offload={offload!r}", wanted=f"one of {', '.join(map(str, PLACES))}")


def check_finite(curvatures: dict[str, Curvature]) -> None:
    """Raise HoldfastError where a curvature holds NaN or infinity."""
    for name, curvature in curvatures.items():
        # Extremes carry NaN along: one pass over each tensor and nothing stored.
        tensors = [tensor for tensor in curvature.tensors().values() if tensor.numel()]
        if not all(bool(torch.stack(tensor.aminmax()).isfinite().all()) for tensor in tensors):
            raise HoldfastError(
                f"the curvature of layer {name!r} is not finite",
                causes=["the model's activations overflow in float16", "the model's weights hold NaN"],
                remedy="load the model in bfloat16 or float32",
            )


def foreign_model(difference: str, base: str) -> HoldfastError:
    """The error for a model that is not the anchored one."""
    return HoldfastError(
        f"this anchor belongs to another model: {difference}",
        wanted=f"the weights of {base!r} at which it was estimated",
        causes=[
            "another checkpoint or revision of the base model",
            "the base model was merged with an adapter or fine-tuned since",
            "an adapter whose initialisation changes the base weights was loaded after training",
        ],
        remedy="estimate the anchor again on this model: holdfast anchor --model ... --source ... --out ...",
    )
