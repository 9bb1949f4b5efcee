"""Sums over gradients of plain parameters, sequence by sequence: for what is no layer's weight.

Prefixes, prompts, IA3's vectors, DoRA's magnitudes, biases: no rows of inputs and gradients make up their gradient,
so it is taken whole, for one sequence at a time.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from holdfast.batches import to_device
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Items, LabelSampler, passes
from holdfast.measuring.measurement import Sampling, Summation, Watch
from holdfast.measuring.sharding import Post
from holdfast.parts import Part
from holdfast.rows.origin import Per


def needs_gradients(parts: Mapping[str, Part], kind: type[Curvature], per: Per | None) -> bool:
    """Whether some part is no layer's weight, so that all are measured by whole gradients.

    Raises:
        HoldfastError: a curvature that needs a layer's rows, or that such gradients be squared per token.
    """
    plain = [name for name, part in parts.items() if part.kind is None]
    if not plain or not kind.statistics():
        return False
    first = f"{', '.join(plain[:2])}{', ...' if len(plain) > 2 else ''}"
    named = f"{first}: not the weight of a layer that is called on the batch's own rows"
    if not kind.elementwise:
        raise HoldfastError(
            f"curvature {kind.kind!r} is made of a layer's inputs and output gradients. {named}",
            wanted="an elementwise curvature where biases, vectors, prompts or embeddings' adapters are trained",
            remedy="ask for curvature='diagonal', or freeze these parameters",
        )
    if per not in (None, "sequence"):
        raise HoldfastError(
            f"per={per!r} squares every position's own gradient, and a whole gradient is a sequence's. {named}",
            remedy="leave per out, or pass per='sequence'",
        )
    return True


class ParameterMeasurement(Summation):
    """As `measurement.Measurement`, from `.grad`: sum over sequences of (sum over positions of dl/dw)^2.

    The diagonal of the Fisher information itself: with sampled labels the scores of two positions are uncorrelated,
    so squaring their sum and summing their squares agree in expectation; with one item to a sequence always. A
    parameter's gradient is one row (1, n) of an input that is 1. The parameters must require a gradient.
    """

    def __init__(
        self,
        reader: Items,
        parts: Mapping[str, Part],
        sizes: Mapping[str, LayerSize],
        kind: type[Curvature],
        reading: Reading,
        sampling: Sampling,
        first: Mapping[str, Curvature] | None = None,
        *,
        watch: Watch | None = None,
        post: Post | None = None,
    ) -> None:
        assert first is None, "no curvature of plain parameters takes two passes"
        assert post is None, "every rank holds these sums"
        self.reader, self.parts, self.sizes, self.kind, self.sampling = reader, parts, dict(sizes), kind, sampling
        self.device = device_of(reader.model)
        one_row = replace(reading, per="token")  # what is handed over is summed over its sequence already
        self._sums: dict[str, dict[str, Statistic]] = {
            part: {name: make(size, one_row) for name, make in kind.statistics().items()}
            for part, size in sizes.items()
        }
        self.sampler = LabelSampler(sampling.seed)

    @property
    def sums(self) -> dict[str, dict[str, Statistic]]:
        return self._sums

    @property
    def groups(self) -> dict[str, str]:
        return {}

    def follow(self, groups: Mapping[str, str]) -> None:
        """Nothing is shared."""

    def put(self, old: Statistic, new: Statistic) -> None:
        for own in self._sums.values():
            own.update({name: new for name, one in own.items() if one is old})

    def place(self, layer: str) -> torch.device:
        return self.parts[layer].tensor.device

    def add(self, batch: Any, number: int | None = None) -> None:
        """One batch, a sequence at a time; `.grad` is as before afterwards."""
        batch = to_device(batch, self.device)
        kept = {part: self.parts[part].tensor.grad for part in self.parts}
        try:
            for sequence in sequences_of(batch):
                self._add(sequence)
        finally:
            for part, gradient in kept.items():
                self.parts[part].tensor.grad = gradient
        self.batches += 1

    def _add(self, sequence: Any) -> None:
        self._forget()
        with torch.enable_grad():
            scored = self.reader.run(sequence)
            for _ in passes(scored, self.sampling.fisher, self.sampler, self.sampling.draws):
                self._take()
        self.items += scored.items

    def _take(self) -> None:
        """Hand one pass's gradients to the sums."""
        for name, part in self.parts.items():
            if part.tensor.grad is not None:
                gradient = part.matrix(part.tensor.grad).reshape(1, -1)
                for statistic in self.sums[name].values():
                    statistic.add(gradient, gradient.new_ones(1, 1))
        self._forget()

    def _forget(self) -> None:
        for part in self.parts.values():
            part.tensor.grad = None


def sequences_of(batch: Any) -> list[Any]:
    """A batch taken apart along the first dimension of its tensors: batches of one sequence each.

    Raises:
        HoldfastError: tensors of different first dimensions.
    """
    if isinstance(batch, Tensor):
        return list(batch.split(1))
    values = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    counts = {len(value) for value in values if isinstance(value, Tensor) and value.dim()}
    if len(counts) != 1:
        raise HoldfastError(
            f"a batch can't be taken apart into sequences: its tensors' first dimensions are {sorted(counts)}",
            wanted="(batch, ...) in every tensor: gradients of plain parameters are taken sequence by sequence",
            remedy="pass batches of one sequence each",
        )
    return [_at(batch, index) for index in range(counts.pop())]


def _at(batch: Any, index: int) -> Any:
    def one(value: Any) -> Any:
        return value[index : index + 1] if isinstance(value, Tensor) and value.dim() else value

    if isinstance(batch, Mapping):
        return {name: one(value) for name, value in batch.items()}
    return type(batch)(one(value) for value in batch)
