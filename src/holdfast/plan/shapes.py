"""A model's layers before anything is measured: their sizes, and which of them read the same tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from holdfast.curvature.statistic import LayerSize
from holdfast.errors import HoldfastError, closest
from holdfast.layers import is_embedding, require_kind
from holdfast.plan.known import KNOWN
from holdfast.statistics import sharing_in
from holdfast.targets import ALL_LINEAR, Targets, select

TOKENS = 4  # of the sequence that shows which layers read the same tensor


@dataclass(frozen=True)
class Shapes:
    """The layers to be measured.

    Attributes:
        sizes: layer -> its size.
        leaders: layer -> the first of the layers that are given the same inputs, itself where it is alone; empty
            where that is not known.
    """

    sizes: dict[str, LayerSize]
    leaders: dict[str, str]


def of_config(name: str | Path, targets: Targets = ALL_LINEAR) -> Shapes:
    """The layers of a model that only its configuration is known of: no weight is made or loaded.

    Args:
        name: one of `KNOWN`, a folder with a config.json, or a hub id.
        targets: the layers, in the grammar of PEFT's `target_modules`.

    Raises:
        HoldfastError: no configuration there, one of no known model, or targets that match nothing.
    """
    model = empty_model(str(name))
    layers = select(model, targets)
    sizes = {n: LayerSize(*require_kind(n, m).size(m), is_embedding(require_kind(n, m))) for n, m in layers.items()}
    for inputs in _attempts(model):
        try:
            return Shapes(sizes, sharing_in(layers, partial(model, **inputs)))
        except Exception:  # other inputs are needed, or values are looked at: each model's code has its own errors
            continue
    return Shapes(sizes, {})


def _attempts(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs without values that a forward pass may take: of text, images, spectra and waveforms."""
    about, name = model.config, model.main_input_name
    with torch.device("meta"):
        text: dict[str, Any] = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.long)}
        after = {"decoder_input_ids": torch.zeros(1, TOKENS, dtype=torch.long)}
        yield from (text | {"use_cache": True}, text, text | after)
        side = getattr(about, "image_size", 224)
        other = {
            "pixel_values": torch.zeros(
                1, getattr(about, "num_channels", 3), *(side if isinstance(side, (list, tuple)) else (side, side))
            ),
            "input_features": torch.zeros(
                1, getattr(about, "num_mel_bins", 80), 2 * getattr(about, "max_source_positions", 1500)
            ),
            "input_values": torch.zeros(1, 16_000),
        }.get(name)
        yield from ({name: other}, {name: other} | after)


def empty_model(name: str) -> Any:
    """The model of a configuration on the meta device: shapes without numbers."""
    import transformers

    configuration = _configuration(name)
    architecture = getattr(transformers, (configuration.architectures or ["-"])[0], None)
    with torch.device("meta"):
        if architecture is not None:
            return architecture(configuration).eval()
        try:
            return transformers.AutoModelForCausalLM.from_config(configuration).eval()
        except ValueError:  # no language model
            return transformers.AutoModel.from_config(configuration).eval()


def _configuration(name: str) -> Any:
    import transformers

    if name.lower() in KNOWN:
        kind, arguments = KNOWN[name.lower()]
        return getattr(transformers, kind)(**arguments)
    try:
        return transformers.AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers, the hub and json each raise their own
        near = closest(name.lower(), KNOWN)
        raise HoldfastError(
            f"no model configuration is found under {name!r}: {str(error).splitlines()[0]}",
            wanted=f"a folder with a config.json, a hub id, or one of {', '.join(KNOWN)}",
            remedy=f"did you mean {near}?" if near else "check the path, or the connection to the hub",
        ) from error
