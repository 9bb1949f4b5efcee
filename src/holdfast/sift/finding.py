"""Every SIFT entry of a model, by name."""

from dataclasses import dataclass

from torch import nn

from holdfast.errors import HoldfastError
from holdfast.sift.entries import Entries
from holdfast.sift.layer import PARAMETERS, SiftLayer
from holdfast.targets import canonical


@dataclass(frozen=True)
class Found:
    """One tensor's entries.

    Attributes:
        name: canonical, "layers.0.q_proj.weight".
        layer: that keeps them; layers that share its tensor are not listed.
        parameter: "weight" or "bias".
        tensor: of the base layer, live.
        entries: of the adapter asked for.
    """

    name: str
    layer: SiftLayer
    parameter: str
    tensor: nn.Parameter
    entries: Entries


def entries_of(model: nn.Module, adapter: str | None = None) -> dict[str, Found]:
    """Canonical name of the tensor -> its entries, in the model's order.

    Args:
        model: with a SIFT adapter, wrapped as it may be.
        adapter: its name; None is the active one.

    Raises:
        HoldfastError: no such adapter, or several are active and none was named.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, SiftLayer)]
    known = sorted({adapter for _, layer in layers for adapter in layer._get_available_adapters()})
    active = [name for name in known if any(name in layer.active_adapters for _, layer in layers)]
    if adapter is None and len(active) > 1:
        raise HoldfastError(f"several SIFT adapters are active: {', '.join(active)}", remedy="name one of them")
    wanted = adapter if adapter is not None else next(iter(active), None)
    if wanted not in known:
        raise HoldfastError(
            "the model has no SIFT adapter" if wanted is None else f"no SIFT adapter is called {wanted!r}",
            wanted=f"one of {', '.join(known)}" if known else "a model from get_peft_model(model, SiftConfig(...))",
        )
    found = {}
    for name, layer in layers:
        for parameter in PARAMETERS:
            own = layer.own(parameter)
            if wanted in own:
                full = f"{canonical(name)}.{parameter}"
                entries = own[wanted]
                found[full] = Found(full, layer, parameter, entries.place.tensor, entries)
    return found
