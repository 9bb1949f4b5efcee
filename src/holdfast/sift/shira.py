"""SIFT adapters as SHiRA adapters, which stock PEFT loads: nobody who uses one needs Holdfast."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import ShiraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.files import whole_file
from holdfast.sift.config import SiftConfig
from holdfast.sift.entries import Entries
from holdfast.sift.finding import entries_of
from holdfast.sift.layer import PARAMETERS, SiftLayer

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MERGE = "write the model with the adapter in it instead: holdfast export --to merged, or model.merge_and_unload()"


@dataclass(frozen=True)
class Written:
    """What the SHiRA folder holds.

    Attributes:
        r: SHiRA's one setting of size.
        entries: that SIFT trained, in all layers.
        stored: with the zeros that SHiRA's sizes ask for.
    """

    r: int
    entries: int
    stored: int


def write_shira(model: Any, folder: Path, adapter: str | None = None) -> Written:
    """Write a SIFT adapter's entries as a SHiRA adapter's (arXiv 2406.13175): the same increments, no approximation.

    SHiRA has r (m + n) entries in every layer of shape m x n, with one r: the smallest that holds the largest layer's
    entries is taken, and the rest are zeros at places of their own. So a choice that is uneven (scope "global") makes
    a larger file. The loaded weight is w + (v - w), v rounded to the weight's dtype, as SIFT has it in place: equal
    but for float32's rounding. SHiRA adds it to a copy of the weight in every forward pass; merge for speed. Modules
    trained whole (modules_to_save) come along.

    Args:
        model: a PeftModel with the adapter.
        folder: adapter_config.json and adapter_model.safetensors are written into it.
        adapter: its name; None is the active one.

    Raises:
        HoldfastError: entries that SHiRA can't hold: in other layers than nn.Linear, in biases, or so many in one
            layer that the r it needs is beyond another; or entries that are not chosen.
    """
    found = entries_of(model, adapter)
    some = next(iter(found.values()))
    adapter = next(name for name, entries in some.layer.own(some.parameter).items() if entries is some.entries)
    layers = _layers(model, adapter)
    r = max(-(-len(entries.indices) // sum(base.weight.shape)) for base, entries in layers.values())
    tensors: dict[str, Tensor] = {}
    for name, (base, entries) in layers.items():
        indices, increments = _padded(name, base, entries, r)
        tensors[f"{PREFIX}{name}.shira_weight"] = increments
        tensors[f"{PREFIX}{name}.shira_indices"] = indices
    config: SiftConfig = model.peft_config[adapter]
    whole = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors |= {key: tensor.detach().cpu().clone() for key, tensor in whole.items() if ".sift_" not in key}
    with whole_file(folder / FILE) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
    _config(config, list(layers), r).save_pretrained(str(folder))
    stored = sum(r * sum(base.weight.shape) for base, _ in layers.values())
    return Written(r, sum(len(entries.indices) for _, entries in layers.values()), stored)


def _layers(model: nn.Module, adapter: str) -> Mapping[str, tuple[nn.Linear, Entries]]:
    """Name in the bare model -> layer and entries, of every layer that is not as it was."""
    found: dict[str, tuple[nn.Linear, Entries]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, SiftLayer):
            continue
        for parameter in PARAMETERS:
            place = layer.places.get(parameter)
            entries = None if place is None else place.entries.get(adapter)
            if entries is None or not len(entries.indices):
                continue
            name = name.removeprefix(PREFIX)
            base = layer.get_base_layer()
            if not entries.chosen:
                raise HoldfastError(f"the entries of {name!r} are not chosen yet", remedy="train the adapter first")
            if parameter == PARAMETERS[0] and isinstance(base, nn.Linear):
                found[name] = (base, entries)
            elif bool(_increments(entries).any()):
                what = type(base).__name__ if parameter == PARAMETERS[0] else parameter
                raise HoldfastError(
                    f"SHiRA can't hold the entries of {name!r} ({what})",
                    wanted="entries in the weights of nn.Linear layers alone",
                    remedy=MERGE,
                )
    if not found:
        raise HoldfastError("the adapter has no entries in any nn.Linear layer", remedy=MERGE)
    return found


def _padded(name: str, base: nn.Linear, entries: Entries, r: int) -> tuple[Tensor, Tensor]:
    """(2, K) int32 rows and columns, and (K,) float32 increments, K = r (m + n); zeros at the first free places."""
    m, n = base.weight.shape
    wanted, size = r * (m + n), m * n
    if wanted > size:
        raise HoldfastError(
            f"SHiRA can't hold these entries: with r={r}, which the largest layer needs, {name!r} of {m} x {n} would "
            f"have {wanted:,} of {size:,} entries",
            causes=["a high density, an uneven choice (scope 'global'), or a layer with very few outputs"],
            remedy=MERGE,
        )
    taken = entries.indices.long().cpu()
    free = torch.ones(size, dtype=torch.bool).index_fill_(0, taken, False)
    added = free.nonzero().view(-1)[: wanted - len(taken)]
    indices, order = torch.cat([taken, added]).sort()
    increments = torch.cat([_increments(entries).cpu(), torch.zeros(len(added))])[order]
    return torch.stack([indices // n, indices % n]).int(), increments


def _increments(entries: Entries) -> Tensor:
    """(k,) float32: what the tensor holds beyond the base, rounded as it holds it."""
    origin = entries.origin
    return (entries.absolute().detach().to(origin.dtype).double() - origin.double()).float()


def _config(config: SiftConfig, layers: list[str], r: int) -> ShiraConfig:
    return ShiraConfig(
        r=r,
        target_modules=sorted(layers),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
