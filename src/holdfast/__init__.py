"""Holdfast: fine-tune any pre-trained model with few parameters, and keep what it already knew."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast import shifts as shifts
    from holdfast.adapters import BottleneckConfig as BottleneckConfig
    from holdfast.adapters import ConvAdapterConfig as ConvAdapterConfig
    from holdfast.anchor import Anchor as Anchor
    from holdfast.anchors.approximation import quality as quality
    from holdfast.errors import HoldfastError as HoldfastError
    from holdfast.fitting.fit import fit as fit
    from holdfast.penalties.distill import Distill as Distill
    from holdfast.penalties.quadratic import Penalty as Penalty
    from holdfast.penalties.together import Together as Together
    from holdfast.sampling import sample_from as sample_from
    from holdfast.shifts.read import snapshot as snapshot
    from holdfast.sift.callback import SiftCallback as SiftCallback
    from holdfast.sift.config import SiftConfig as SiftConfig
    from holdfast.trainers import HoldfastCallback as HoldfastCallback
    from holdfast.trainers import attach as attach

__version__ = "0.1.0"

# Public name -> module: nothing heavy is imported before it is used.
_HOME = {
    "Anchor": "holdfast.anchor",
    "BottleneckConfig": "holdfast.adapters",
    "ConvAdapterConfig": "holdfast.adapters",
    "Distill": "holdfast.penalties.distill",
    "HoldfastCallback": "holdfast.trainers",
    "HoldfastError": "holdfast.errors",
    "Penalty": "holdfast.penalties.quadratic",
    "SiftCallback": "holdfast.sift.callback",
    "SiftConfig": "holdfast.sift.config",
    "Together": "holdfast.penalties.together",
    "attach": "holdfast.trainers",
    "fit": "holdfast.fitting.fit",
    "quality": "holdfast.anchors.approximation",
    "sample_from": "holdfast.sampling",
    "snapshot": "holdfast.shifts.read",
}
__all__ = [*sorted(_HOME), "shifts"]


def __getattr__(name: str) -> Any:
    if name == "shifts":
        return importlib.import_module("holdfast.shifts")
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
