"""The anchor: what each layer's moves cost, measured once on old data at the weights to hold on to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast import anchor_file, catalogue
from holdfast.batches import batches_of
from holdfast.collecting import measure
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.fingerprint import alike, fingerprint, identical
from holdfast.layers import is_embedding, require_kind
from holdfast.likelihood import FISHERS, Fisher, ForwardLoss, Items, bare
from holdfast.measurement import Sampling
from holdfast.pretrained import at_anchor
from holdfast.rows import PER, Per
from holdfast.targets import Targets, base_layers, select


@dataclass
class Anchor:
    """Layer name -> curvature, with the identity of the weights it was measured at.

    The unit is nats: 1/2 <D, C D> predicts the rise of the mean loss per scored item.
    """

    curvatures: dict[str, Curvature]
    weights: dict[str, dict[str, Any]]  # layer name -> fingerprint
    kind: str
    fisher: Fisher | None
    items: int
    facts: dict[str, Any] = field(default_factory=dict)  # base model, item unit, data fingerprint, ...

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        source: Any = None,
        *,
        curvature: str = "kronecker",
        targets: Targets = "all-linear",
        fisher: Fisher = "sampled",
        draws: int = 1,
        per: Per = "token",
        keep: int = 256,
        max_items: int | None = None,
        dtype: torch.dtype | None = None,
        fraction: float = 1.0,
        batch_size: int = 8,
        forward_loss: ForwardLoss | None = None,
        item: str | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Measure the curvature of the source loss at the model's present weights, adapters switched off.

        Streams once over the data in eval mode. Only inputs and output gradients of the targeted layers are read:
        no weight gradient is formed. Every mode, flag, hook and random state is as before afterwards.

        Args:
            model: a transformers model, or any module together with `forward_loss`.
            source: an iterable of batches, a DataLoader or a `datasets.Dataset`; None for a curvature that needs
                no data ("identity").
            curvature: a kind from `holdfast methods`.
            targets: the layers, in the grammar of PEFT's `target_modules`.
            fisher: "sampled" draws each label from the model (the true Fisher, unbiased); "exact" takes the
                expectation over all labels instead, where classes are few; "data" uses the data's own labels (the
                empirical Fisher: about twice as large on language models, and no forecast).
            draws: labels drawn for each item: less noise for as many backward passes.
            per: "token" takes every position as an example of its own; "sequence" sums a sequence's gradient before
                squaring it: each curvature says what it then is.
            keep: examples that the curvatures of stored samples keep.
            max_items: stop after the batch in which this many scored items were seen.
            dtype: of the products that make the sums, torch.bfloat16 for instance; sums stay in float32.
            fraction: the share of positions whose rows enter the sums, drawn at random per batch.
            batch_size: for a `datasets.Dataset`.
            forward_loss: `f(model, batch)` returning (logits, labels) or (summed loss, items). Positions that its
                labels leave out (-100) are left out of sums over inputs where the batch's "attention_mask" is 0.
            item: what one scored item is, for reports; None: "token" or "example", as the labels have it.
            seed: of the drawn labels and positions.
            progress: show a progress bar.

        Raises:
            HoldfastError: no data, no matching layer, a layer that no scored item depends on, adapters that changed
                the base weights, non-finite sums.
        """
        kind = catalogue.curvature(curvature)
        _check_options(fisher, draws, per, fraction, source, kind)
        layers = select(model, targets)
        weights = {name: fingerprint(module.weight) for name, module in layers.items()}
        base = getattr(getattr(bare(model), "config", None), "_name_or_path", "") or type(bare(model)).__name__
        facts: dict[str, Any] = {"base_model": base, "item": item, "seed": seed, "fraction": fraction}
        facts |= {"products": str(dtype or "as the model").removeprefix("torch."), "draws": draws, "per": per}
        sizes = {name: _size(name, module) for name, module in layers.items()}
        if not kind.statistics():
            curvatures = {name: kind.from_sums(size, {}, 1) for name, size in sizes.items()}
            return cls(curvatures, weights, curvature, None, 0, facts)
        reader = Items(model, forward_loss)
        with at_anchor(model):
            curvatures, measured = measure(
                reader,
                layers,
                sizes,
                kind,
                batches_of(source, batch_size),
                reading=Reading(dtype, per, keep, seed),
                sampling=Sampling(fisher, draws, fraction, seed),
                max_items=max_items,
                progress=progress,
            )
        _check_finite(curvatures)
        facts |= {"item": item or reader.item, "data_sha256": measured.digest.hexdigest()}
        return cls(curvatures, weights, curvature, fisher, measured.items, facts)

    def check(self, model: nn.Module) -> None:
        """Raise HoldfastError unless the model's base weights are the anchored ones, naming the first that differs."""
        layers = base_layers(model)
        for name, known in self.weights.items():
            if name not in layers:
                raise self.foreign(f"the anchored layer {name!r} is not in the model")
            weight = layers[name].weight
            if list(weight.shape) != known["shape"]:
                raise self.foreign(f"{name}.weight has shape {tuple(weight.shape)}, anchored {tuple(known['shape'])}")
            if not identical(weight, known):
                raise self.foreign(f"{name}.weight differs from the anchored weight")

    def is_at(self, name: str, weight: Tensor, *, exactly: bool = True) -> bool:
        """Whether a weight of the layer's own shape is the anchored one, byte for byte or within rounding."""
        known = self.weights[name]
        return identical(weight, known) if exactly else alike(weight, known)

    def foreign(self, difference: str) -> HoldfastError:
        """The error for a model that is not the anchored one."""
        return HoldfastError(
            f"this anchor belongs to another model: {difference}",
            wanted=f"the weights of {self.facts.get('base_model', 'the anchored model')!r} at which it was estimated",
            causes=[
                "another checkpoint or revision of the base model",
                "the base model was merged with an adapter or fine-tuned since",
                "an adapter whose initialisation changes the base weights was loaded after training",
            ],
            remedy="estimate the anchor again on this model: holdfast anchor --model ... --source ... --out ...",
        )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `anchor.safetensors` and `anchor.json`, both or neither; torch.bfloat16 takes half of float32."""
        anchor_file.save(self, Path(folder), dtype)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an anchor.

        Raises:
            HoldfastError: a missing, truncated or changed file, another format version, or a layer without tensors.
        """
        return cls(**anchor_file.load(Path(folder)))


def _size(name: str, module: nn.Module) -> LayerSize:
    kind = require_kind(name, module)
    return LayerSize(*kind.size(module), indexed=is_embedding(kind))


def _check_options(fisher: str, draws: int, per: str, fraction: float, source: Any, kind: type[Curvature]) -> None:
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


def _check_finite(curvatures: dict[str, Curvature]) -> None:
    for name, curvature in curvatures.items():
        # Extremes carry NaN along: one pass over each tensor and nothing stored.
        if not all(bool(torch.stack(t.aminmax()).isfinite().all()) for t in curvature.tensors().values()):
            raise HoldfastError(
                f"the curvature of layer {name!r} is not finite",
                causes=["the model's activations overflow in float16", "the model's weights hold NaN"],
                remedy="load the model in bfloat16 or float32",
            )
