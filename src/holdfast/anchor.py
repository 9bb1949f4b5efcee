"""The anchor: what each layer's moves cost, measured once on old data at the weights to hold on to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.anchors import file as anchor_file
from holdfast.anchors import merging
from holdfast.anchors.options import check_dtype, check_finite, check_keep, check_options, check_place, foreign_model
from holdfast.batches import batches_of
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.offload import Place
from holdfast.curvature.statistic import Reading
from holdfast.errors import HoldfastError
from holdfast.fingerprint import alike, fingerprint, identical
from holdfast.likelihood import Fisher, ForwardLoss, Items, bare
from holdfast.measuring.collecting import measure
from holdfast.measuring.measurement import Measurement, Sampling
from holdfast.measuring.parameters import ParameterMeasurement, needs_gradients
from holdfast.measuring.stopping import check_extent
from holdfast.parts import Part, Space, frozen_under, parts_in, select_parts, sizes_of
from holdfast.plan.probing import for_model
from holdfast.pretrained import at_anchor, at_start, check_whole
from holdfast.rows.origin import Per
from holdfast.targets import Targets


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        return f"Anchor({self.kind}, {len(self.curvatures)} layers, {self.items} items, fisher={self.fisher!r})"

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        source: Any = None,
        *,
        curvature: str = "kronecker",
        targets: Targets = "all-linear",
        space: Space = "weights",
        fisher: Fisher = "sampled",
        draws: int = 1,
        per: Per | None = None,
        keep: int = 256,
        max_items: int | None = None,
        until: float | None = None,
        dtype: torch.dtype | None = None,
        memory: int | str | None = None,
        storage: str | None = None,
        offload: Place | None = None,
        fraction: float = 1.0,
        batch_size: int = 8,
        forward_loss: ForwardLoss | None = None,
        item: str | None = None,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        shard: bool = False,
        progress: bool = True,
    ) -> Self:
        """Measure the curvature of the source loss at the model's present weights.

        Streams once over the data in eval mode. Only inputs and output gradients of the targeted layers are read:
        no weight gradient is formed. Every mode, flag, hook and random state is as before afterwards.

        Under torch.distributed all ranks must call it with the same source. They share its batches, and the result
        is that of one process; with a `forward_loss`, which names no sequences, other examples are kept ("samples").

        Args:
            model: a transformers model, or any module together with `forward_loss`.
            source: an iterable of batches, a DataLoader or a `datasets.Dataset`; None for a curvature that needs
                no data ("identity").
            curvature: a kind from `holdfast methods`.
            targets: the layers, in the grammar of PEFT's `target_modules`.
            space: "weights" measures the base layers, adapters switched off; "adapter" measures what the adapter
                trains, at its present values and switched on (LaLoRA, arXiv 2512.17720). Parameters that are no
                layer's weight (prefixes, IA3's vectors, DoRA's magnitudes, biases) have elementwise curvature,
                curvature="diagonal", per sequence; each sequence then takes a backward pass of its own.
            fisher: "sampled" draws each label from the model (the true Fisher, unbiased); "exact" takes the
                expectation over all labels instead, where classes are few; "data" uses the data's own labels (the
                empirical Fisher: about twice as large on language models, and no forecast).
            draws: labels drawn for each item: less noise for as many backward passes.
            per: "token" takes every position as an example of its own; "sequence" sums a sequence's gradient before
                squaring it: each curvature says what it then is. None: as suits the curvature, nearly always "token".
            keep: examples that the curvatures of stored samples keep.
            max_items: stop after the batch in which this many scored items were seen.
            until: stop as soon as <D, C D> along each layer's leading directions is known to this relative standard
                error, 0.02 say, told from two halves of the data (`holdfast.measuring.agreement`): twice the memory
                for sums. Batches go to the halves in turn and are taken for independent: where neighbours are alike
                (one long document), shuffle them, or the error is told too small. A warning says so where the data
                end first; `facts["agreement"]` holds what was reached.
            dtype: that rows are rounded to before they are multiplied, torch.bfloat16 for instance; products and sums
                are float32 all the same. It saves time where the device multiplies so (CUDA).
            memory: bytes ("4GiB") that the running sums, and then the curvature, may take. Wide factors are kept as
                low-rank sketches, then smaller ones, then diagonals, until all fit; what was chosen is in
                `facts["plan"]`, how much of each trace it holds in `facts["captured"]`. The model, a batch and
                what one layer needs while its factors are finished come on top.
            storage: of factors, where it is smaller than "full": "blocks:1024", "low-rank:256", "diagonal". None:
                full, but for sides of more than 30,000 numbers, and for what `memory` is too small for.
            offload: where running sums are kept: None beside the model, "cpu", or "disk", in nameless files of the
                temporary folder (TMPDIR).
            fraction: the share of positions whose rows enter the sums, drawn at random per batch.
            batch_size: for a `datasets.Dataset`.
            forward_loss: `f(model, batch)` returning (logits, labels), (outputs, float targets) for normal noise of
                variance 1, one of `holdfast.likelihoods`, or (summed loss, items), of which nothing is forecast in
                nats. Positions that its labels leave out (-100) are left out of sums over inputs where the batch's
                "attention_mask" is 0.
            item: what one scored item is, for reports; None: "token", "example" or "utterance", as the head has it.
            seed: of the drawn labels and positions.
            checkpoint: a folder for the sums so far, written every minute and when interrupted. The same call goes on
                from there; the folder is removed at the end.
            shard: under torch.distributed, each layer's sums are held by one rank, which the others send rows to;
                rank 0 alone gets the finished curvatures. Otherwise every rank holds all sums and gets them all.
            progress: show a progress bar.

        Raises:
            HoldfastError: no data, no matching layer, a layer that no scored item depends on, adapters that changed
                the base weights, non-finite sums, a memory budget that nothing fits into, no space to offload to,
                parameters that are sharded (FSDP, ZeRO-3).
        """
        # A rank without a batch would wait for the others' shards.
        check_whole(model, "anchors", "estimate the anchor before the model is sharded: each rank holds all of it")
        kind = catalogue.curvature(curvature)
        check_keep(keep, kind)
        check_dtype(dtype)
        check_extent(until, checkpoint, shard, kind)
        check_place(offload)
        parts = select_parts(model, targets, space)
        plain = needs_gradients(parts, kind, per)
        per = per or ("sequence" if plain else kind.per)
        check_options(fisher, draws, per, fraction, source, kind)
        weights = {name: fingerprint(part.pretrained) for name, part in parts.items()}
        base = getattr(getattr(bare(model), "config", None), "_name_or_path", "") or type(bare(model)).__name__
        facts: dict[str, Any] = {"base_model": base, "item": item, "seed": seed, "fraction": fraction}
        facts |= {"products": str(dtype or "as the model").removeprefix("torch."), "draws": draws, "per": per}
        if space == "adapter":
            under = {name: fingerprint(part.pretrained) for name, part in frozen_under(model, parts).items()}
            facts |= {"space": space, "base": under}
        sizes = sizes_of(parts, flat=plain)
        if not kind.statistics():
            curvatures = {name: kind.from_sums(size, {}, 1) for name, size in sizes.items()}
            return cls(curvatures, weights, curvature, None, 0, facts)
        reading = Reading(dtype, per, keep, seed, offload, halves=1 if until is None else 2)
        reader = Items(model, forward_loss)
        moving = [part.tensor for part in parts.values()] if plain else []
        with at_anchor(model) if space == "weights" else at_start(model, moving):
            chosen, batches = for_model(
                reader, parts, sizes, kind, reading, batches_of(source, batch_size), memory=memory, storage=storage
            )
            measured = measure(
                reader,
                parts if plain else {name: part.module for name, part in parts.items()},
                chosen.sizes,
                kind,
                batches,
                reading=reading,
                sampling=Sampling(fisher, draws, fraction, seed),
                max_items=max_items,
                until=until,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                shard=shard,
                progress=progress,
                by=ParameterMeasurement if plain else Measurement,
            )
        check_finite(curvatures := measured.curvatures)
        facts |= {"plan": chosen.facts()} if memory or storage or chosen.notes else {}
        captured = {name: shares for name, curvature in curvatures.items() if (shares := curvature.captured())}
        facts |= {"captured": captured} if captured else {}
        facts |= {"item": item or reader.item, "until": until}
        facts |= {"data_sha256": measured.data_sha256, "agreement": measured.agreement}
        return cls(curvatures, weights, curvature, fisher, measured.items, facts)

    def check(self, model: nn.Module) -> None:
        """Raise HoldfastError unless the model's weights are the anchored ones, naming the first that differs.

        In the space of the adapter these are its own parameters as they were, and the base weights under it.
        """
        self._check_same(self.weights, parts_in(model, self.space))
        self._check_same(self.facts.get("base", {}), parts_in(model, "weights"))

    def _check_same(self, anchored: dict[str, dict[str, Any]], parts: dict[str, Part]) -> None:
        for name, known in anchored.items():
            if name not in parts:
                raise self.foreign(f"the anchored layer {name!r} is not in the model")
            weight, parameter = parts[name].pretrained, parts[name].parameter
            whole = name if name.endswith(f".{parameter}") else f"{name}.{parameter}"
            if list(weight.shape) != known["shape"]:
                raise self.foreign(f"{whole} has shape {tuple(weight.shape)}, anchored {tuple(known['shape'])}")
            if not identical(weight, known):
                raise self.foreign(f"{whole} differs from the anchored weight")

    @property
    def space(self) -> Space:
        """What was measured: "weights", or what the "adapter" trains."""
        return self.facts.get("space", "weights")

    def is_at(self, name: str, weight: Tensor, *, exactly: bool = True) -> bool:
        """Whether a weight of the layer's own shape is the anchored one, byte for byte or within rounding."""
        known = self.weights[name]
        return identical(weight, known) if exactly else alike(weight, known)

    def foreign(self, difference: str) -> HoldfastError:
        """The error for a model that is not the anchored one."""
        if self.space == "adapter":
            return HoldfastError(
                f"this anchor belongs to another start of the adapter: {difference}",
                wanted="the adapter's parameters at which it was estimated, and the same base model under it",
                causes=["another seed, rank or method", "the adapter was trained since", "another base model"],
                remedy="estimate the anchor on this model, before training: Anchor.estimate(..., space='adapter')",
            )
        return foreign_model(difference, self.facts.get("base_model", "the anchored model"))

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

    @classmethod
    def merge(cls, anchors: "Sequence[Anchor]") -> Self:
        """One anchor of all the data that these were measured on, at the same base weights: a mean over scored items.

        What one run over all the data would have given, for kinds whose sums add up.

        Raises:
            HoldfastError: other base weights (naming the first layer), another kind or other options, the same data
                twice, or a kind that does not add up (eigen).
        """
        return cls(**merging.merge(anchors))

    @classmethod
    def accumulate(cls, old: "Anchor", new: "Anchor", decay: float = 1.0) -> Self:
        """decay * C_old + C_new at the new weights: online Laplace over tasks (arXiv 1805.07810), a sum, not a mean.

        Exact for kinds that add up; for Kronecker products an approximation, which `facts["approximation"]` states.
        The exact sum is a list of anchors, given to the penalty.

        Raises:
            HoldfastError: other layers, another kind or other options, or a kind that does not add up (eigen).
        """
        return cls(**merging.accumulate(old, new, decay))
