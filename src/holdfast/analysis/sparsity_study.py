"""`holdfast analyse sparsity`: the measurements, and what they say of the claim."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from holdfast.analysis.gradients import tensors_of
from holdfast.analysis.landscape import random_twin
from holdfast.analysis.leaving import Finding
from holdfast.analysis.merged import with_adapter
from holdfast.analysis.persistence import Masks, Overlap, chance, masks, overlap, trained
from holdfast.analysis.sparsity import Sparsity, kinds_of, sparsity
from holdfast.analysis.sparsity_words import finding
from holdfast.analysis.subject import Asked, Subject, batches, read_subject
from holdfast.errors import HoldfastError
from holdfast.progress import track
from holdfast.sides import Side

EXAMPLES = (1, 8, 64)
MOMENTS = 5  # of training at which masks are compared, the start included


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        examples: numbers of examples over which the gradient is summed; figures are of the largest.
        steps: of training, for the persistence of masks; 0: none.
        learning_rate: of that training.
        random: a random initialisation of the same model as well.
    """

    examples: tuple[int, ...] = EXAMPLES
    steps: int = 32
    learning_rate: float = 1e-3
    random: bool = True

    def __post_init__(self) -> None:
        if not self.examples or min(self.examples) < 1:
            raise HoldfastError(f"examples {self.examples}", wanted="at least one number of examples, each 1 or more")
        if self.steps < 0:
            raise HoldfastError(f"{self.steps} steps of training", wanted="0 or more")


@dataclass
class Measured:
    """All that the words and the pictures need: condition -> figures, the condition "pre-trained" first."""

    conditions: dict[str, Sparsity]
    by_examples: dict[str, list[Sparsity]]  # condition -> for each number of examples
    overlaps: dict[str, Overlap] = field(default_factory=dict)  # what is compared with the first batch's mask
    training: dict[str, list[tuple[int, Overlap]]] = field(default_factory=dict)  # which examples -> (step, overlap)


def study(asked: Asked, options: Options, adapter: Path | None = None) -> Finding:
    """Measure concentration and persistence on a model and its data.

    Raises:
        HoldfastError: a model, adapter or data that can't be read or are too few, or gradients that are not finite.
    """
    subject = read_subject(asked, "source", "target")
    needed = max(options.examples)
    target = _enough(subject.target, 2 * needed, "target")
    source = _enough(subject.source, needed, "source")
    measured = _conditions(subject, target[:needed], options, adapter, asked)
    _persist(subject.model, target, source, options, measured, len(target) > 2 * needed)
    settings = {**asdict(asked), **asdict(options), "adapter": adapter, "subject": subject.about}
    return finding(measured, settings)


def _enough(side: Side, needed: int, name: str) -> list[Any]:
    if len(side.rows) < needed:
        raise HoldfastError(
            f"the {name} has {len(side.rows)} rows to take gradients of, and {needed} are needed",
            remedy="give more data, a smaller --examples, or a smaller --length",
        )
    return side.rows


def _conditions(
    subject: Subject, rows: Sequence[Any], options: Options, adapter: Path | None, asked: Asked
) -> Measured:
    models: list[tuple[str, Any]] = [("pre-trained", lambda: subject.model)]
    if options.random:
        models.append(("random", lambda: random_twin(subject.model, asked.seed)))
    if adapter is not None:
        models.append(("tuned", lambda: with_adapter(subject.model, adapter, asked.dtype)))
    by_examples: dict[str, list[Sparsity]] = {}
    with track("gradients", len(models) * len(options.examples), unit="measurement") as advance:
        for name, make in models:
            model = make()
            by_examples[name] = []
            for count in sorted(set(options.examples)):
                by_examples[name].append(sparsity(model, batches(rows[:count])))
                advance()
    return Measured({name: found[-1] for name, found in by_examples.items()}, by_examples)


def _persist(
    model: nn.Module, target: list[Any], source: list[Any], options: Options, measured: Measured, more: bool
) -> None:
    """Masks of the first examples against other examples, the other task, and the same model while it is trained."""
    count = max(options.examples)
    first, fresh = batches(target[:count]), batches(target[count : 2 * count])
    tensors = _all_but_embeddings(model)
    mask = masks(model, first, tensors=tensors)
    measured.overlaps = {
        "other examples": overlap(model, fresh, mask, tensors=tensors),
        "the source": overlap(model, batches(source[:count]), mask, tensors=tensors),
        "chance": chance(0.01),
    }
    if options.steps:
        training = itertools.cycle(batches(target[2 * count :] if more else target))
        _persist_over_training(model, first, fresh, training, mask, options, measured)


def _persist_over_training(
    model: nn.Module,
    first: list[Any],
    fresh: list[Any],
    training: Iterator[Any],
    mask: Masks,
    options: Options,
    measured: Measured,
) -> None:
    """All but the embeddings of a copy of the model are trained; the model itself stays as it is."""
    moving = copy.deepcopy(model)
    tensors = _all_but_embeddings(moving)
    moving.requires_grad_(False)
    moments = sorted({math.floor(options.steps * i / (MOMENTS - 1)) for i in range(MOMENTS)})
    measured.training = {"the same examples": [], "other examples": []}
    with track("train", options.steps, unit="step") as advance:
        stops = trained(
            moving, training, moments, tensors=tensors, learning_rate=options.learning_rate, advance=advance
        )
        for step in stops:
            for name, rows in (("the same examples", first), ("other examples", fresh)):
                measured.training[name].append((step, overlap(moving, rows, mask, tensors=tensors)))


def _all_but_embeddings(model: nn.Module) -> dict[str, nn.Parameter]:
    kinds = kinds_of(model)
    return {name: p for name, p in tensors_of(model).items() if kinds[name] != "embedding"}
