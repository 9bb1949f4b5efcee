"""The method of a tuning run: its options, its size where a budget of parameters sets it, and what it trains."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast import catalogue
from holdfast.batches import Row, collate
from holdfast.errors import HoldfastError
from holdfast.holding import Holding
from holdfast.report.words import in_words
from holdfast.targets import Targets
from holdfast.tune_recipe import TuneRecipe
from holdfast.tuners.amount import Amount
from holdfast.tuners.options import chosen, written
from holdfast.tuners.sizing import by_component, parameters_of, solve
from holdfast.tuners.tuner import Tuner

POSITIONS = re.compile("position|^wpe$")  # names of learned tables of positions


@dataclass(frozen=True)
class Trains:
    """What a method trains of a model.

    Attributes:
        method: its name.
        options: it was put on the model with these.
        size: parameters of the base model.
        components: part of the method -> how many of its parameters train.
    """

    method: str
    options: dict[str, Any]
    size: int
    components: dict[str, int]

    @property
    def count(self) -> int:
        """Trained parameters."""
        return sum(self.components.values())

    def __str__(self) -> str:
        share = f"{100 * self.count / self.size:.3g}% of the model's {self.size:,}"
        return f"{self.count:,} parameters train ({share}): {in_words(self.components)}"


def tuner_of(recipe: TuneRecipe, said: Collection[str] = ()) -> Tuner:
    """The recipe's method with its options; its size is yet open where `parameters` sets it.

    Args:
        recipe: what was asked for. One that is read again has every key, so defaults count as not said.
        said: those of rank and alpha that were said in so many words, a default or not.

    Raises:
        HoldfastError: a name or an option that nothing has, or a size beside the budget that sets it.
    """
    tuner = catalogue.tuner(recipe.method)
    top = {key: getattr(recipe, key) for key in ("rank", "alpha") if key in said or recipe.changed(key)}
    made = chosen(tuner, recipe.tuner, **top)
    given = {**recipe.tuner, **top}
    if recipe.parameters is not None and (key := next((key for key in tuner.sizes if key in given), None)):
        raise HoldfastError(
            f"parameters={recipe.parameters} sets {tuner.sizes[0]}, and {key}={given[key]} says how many too",
            remedy="leave one of them out",
        )
    return made


def check_held(tuner: Tuner, recipe: TuneRecipe, holding: Holding) -> None:
    """Raise HoldfastError where the method has nothing that the run's anchors or its budget hold on to."""
    spaces = {anchor.space for anchor in holding.anchors} | ({recipe.space} if recipe.curvature else set())
    if not tuner.shifts and ("weights" in spaces or holding.forecast is not None):
        raise HoldfastError(
            f"--method {recipe.method} moves no weight that an anchor of weights prices",
            remedy="hold on to the adapter's own parameters (--curvature diagonal --space adapter --source DATA), or "
            "in function space (--source self --distill 1)"
            if tuner.adapter
            else "hold on in function space: --source self --distill 1 --set distill_top_k=256",
        )
    if not tuner.steady and (recipe.budget or "adapter" in spaces):
        asked = f"budget={', '.join(recipe.budget)}" if recipe.budget else "--space adapter"
        raise HoldfastError(
            f"{asked} counts from where each trained number started, and --method {recipe.method} is to exchange them",
            remedy="--set tuner.refresh=0",
        )


def sized(tuner: Tuner, base: nn.Module, targets: Targets, parameters: str | int | None) -> Tuner:
    """The tuner as large as a recipe's `parameters` allow; as it is where there is no such budget.

    Raises:
        HoldfastError: a budget that the method can't keep, with the numbers.
    """
    if parameters is None:
        return tuner
    return solve(base, tuner, targets, Amount.parse(parameters).of(parameters_of(base)))


def size_in_words(asked: Tuner, tuner: Tuner) -> str:
    """What a budget of parameters set of a method's options: "se_reduction 64, mixing 10"."""
    before, now = asked.options.model_dump(), tuner.options.model_dump()
    return ", ".join(f"{key} {written(now[key])}" for key in now if now[key] != before[key] or key == tuner.sizes[0])


def put_on(
    tuner: Tuner, base: nn.Module, targets: Targets, rows: Sequence[Row], size: int, length: int, seed: int
) -> tuple[nn.Module, Trains]:
    """The model to train, ready for its first step (see `get_ready`), and what trains of it.

    Args:
        tuner: the method.
        base: changed in place.
        targets: the layers.
        rows: that it will be trained on.
        size: of a batch.
        length: tokens of any row, at most.
        seed: of the rows that it is made ready with.

    Raises:
        HoldfastError: see `Tuner.prepare`; more positions than the model has.
    """
    _check_positions(tuner, base, length)
    parameters = parameters_of(base)
    model = tuner.prepare(base, targets)
    get_ready(tuner, model, rows, size, seed)
    return model, Trains(tuner.name, tuner.options.model_dump(mode="json"), parameters, by_component(model, tuner))


def _check_positions(tuner: Tuner, base: nn.Module, length: int) -> None:
    """Raise HoldfastError where what the method puts before a row makes it longer than a table of positions."""
    limit = getattr(getattr(base, "config", None), "max_position_embeddings", None)
    if not tuner.positions or limit is None or tuner.positions + length <= limit:
        return
    tables = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Embedding) and POSITIONS.search(name.rpartition(".")[2])
    ]
    if tables:  # rotary and relative positions go on beyond
        raise HoldfastError(
            f"{tuner.positions} positions before rows of {length} tokens, but the model has a table of {limit} "
            f"({tables[0]})",
            remedy=f"--length {max(limit - tuner.positions, 1)} or less, or a shorter prefix",
        )


def get_ready(tuner: Tuner, model: nn.Module, rows: Sequence[Row], size: int, seed: int) -> None:
    """Let the method see the data that it asks for: batches of `size` rows, drawn by the seed; perhaps none."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    picked = [rows[i] for i in order[: tuner.wants() * size]]
    tuner.ready(model, [collate(picked[start : start + size]) for start in range(0, len(picked), size)])
