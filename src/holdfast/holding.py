"""What one tuning run holds on by: stored anchors, what is measured in the run, and the penalties they make."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchors.options import check_keep, check_options
from holdfast.anchors.store import Store
from holdfast.batches import collate
from holdfast.before_after import batches
from holdfast.errors import HoldfastError
from holdfast.fingerprint import fingerprint
from holdfast.parts import Space, select_parts
from holdfast.penalties.anchored import Anchored
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.regularizer import Regularizer
from holdfast.penalties.together import Together
from holdfast.sides import SELF, Side
from holdfast.tune_recipe import MEASURING, TuneRecipe

BATCH = 8  # sequences that are measured at once


class Holding:
    """The anchors of a run and its regularizers; built before anything is loaded.

    Attributes:
        anchors: the stored ones in their order, then the one measured in this run.
        seconds: spent on measuring, by this run or by the one that left what it measured in the store.

    Args:
        recipe: what was asked for.
        say: for lines to read.
        store: where what is measured is kept for other runs; None keeps nothing.

    Raises:
        HoldfastError: names that nothing has, options that do not go together, a folder that is no anchor.
    """

    def __init__(self, recipe: TuneRecipe, say: Callable[[str], None], store: Store | None = None) -> None:
        self.recipe, self.say, self.store = recipe, say, store
        self.form = _form(recipe.form)
        self.seconds = 0.0
        self.steered: Regularizer | None = None  # what a budget steers
        if recipe.curvature is not None:
            _check_measured(recipe, recipe.curvature)
        self.anchors = [Anchor.load(folder) for folder in recipe.anchor]
        self.forecast = None if recipe.forecast is None else Anchor.load(recipe.forecast)
        for kind in [anchor.kind for anchor in self.anchors] + [recipe.curvature or "identity"]:
            self.form.check_squares(catalogue.curvature(kind))
        spaces = {anchor.space for anchor in self.anchors} | ({recipe.space} if recipe.curvature else set())
        if recipe.prior and "adapter" not in spaces:
            raise HoldfastError(
                f"prior={recipe.prior} is a precision of the adapter's own parameters, and no anchor is of them",
                remedy="measure one: --curvature KIND --space adapter",
            )

    def check(self, base: nn.Module) -> None:
        """Raise HoldfastError where a stored anchor of weights is another model's."""
        for anchor in [*self.anchors, *([] if self.forecast is None else [self.forecast])]:
            if anchor.space == "weights":
                anchor.check(base)

    def measure(self, model: Any, source: Side | None, space: Space) -> None:
        """Measure the recipe's curvature, if it is of that space: of the weights at the base model, else at the start.

        Raises:
            HoldfastError: a model without an adapter, a curvature that its parameters don't have.
        """
        recipe = self.recipe
        if recipe.curvature is None or recipe.space != space:
            return
        if space == "adapter" and not hasattr(model, "peft_config"):
            raise HoldfastError(
                f"--space adapter measures what an adapter trains, and --method {recipe.method} makes none",
                remedy="leave --space out",
            )
        rows = source.rows if source is not None and _reads(recipe.curvature) else None
        if self.store is None:
            measured, self.seconds = self._measured(model, rows)
        else:
            measured, self.seconds = self.store.kept(recipe, model, rows, lambda: self._measured(model, rows))
        self.anchors.append(measured)
        count, of = len(measured.curvatures), "layers" if space == "weights" else "parts of the adapter"
        on = "" if rows is None else f" from {measured.items} tokens in {self.seconds:.1f} s"
        self.say(f"anchor: {measured.kind} of {count} {of}{on}")

    def _measured(self, model: Any, rows: list[Any] | None) -> tuple[Anchor, float]:
        """The anchor that the recipe's curvature asks for, and the seconds it took."""
        recipe, started = self.recipe, time.perf_counter()
        assert recipe.curvature is not None
        options: dict[str, Any] = {"targets": recipe.targets} if recipe.space == "weights" else {}
        measured = Anchor.estimate(
            model,
            None if rows is None else [collate(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)],
            curvature=recipe.curvature,
            space=recipe.space,
            fisher=recipe.fisher,
            draws=recipe.draws,
            per=recipe.per,
            keep=recipe.keep,
            max_items=recipe.max_items,
            seed=recipe.seed,
            **options,
        )
        return measured, time.perf_counter() - started

    def start(self, model: nn.Module) -> str | None:
        """A hash of what the adapter starts at, where an anchor belongs to it: a resumed run must start there too."""
        if all(anchor.space == "weights" for anchor in self.anchors):
            return None
        trained = select_parts(model, "all-linear", "adapter")
        hashes = "".join(fingerprint(part.tensor)["sha256"] for part in trained.values())
        return hashlib.sha256(hashes.encode()).hexdigest()

    def penalties(self, model: nn.Module, text: Side | None) -> list[Regularizer]:
        """What joins the loss; the model stands at its start, and distils on that text.

        Raises:
            HoldfastError: an anchor of another start, a layer without a price, nothing to distil from.
        """
        recipe, found = self.recipe, list[Regularizer]()
        if self.anchors:
            options: dict[str, Any] = {"weights": recipe.anchor_weights, "forecast": self.forecast}
            options |= {"prior": recipe.prior} if recipe.prior else {}  # the quadratic form alone has one
            found.append(self.form(model, self.anchors, recipe.strength, recipe.damping, **options))
        if recipe.distill > 0 and text is not None:
            found.append(_distillation(recipe, model, text))
        return found

    def joined(self, model: nn.Module, penalties: list[Regularizer], source: Side | None) -> list[Regularizer]:
        """What training adds to the loss: the penalties, or all under one strength, the recipe's or a budget's.

        Raises:
            HoldfastError: a budget that can't be measured, or penalties that don't forecast.
        """
        recipe, joined = self.recipe, penalties
        if recipe.together is not None or (recipe.budget and len(penalties) > 1):
            joined = [Together(model, penalties, recipe.together or 1.0, shares=[1.0] * len(penalties))]
        if recipe.budget:
            one = recipe.budgets if len(recipe.budget) > 1 else recipe.budgets[0]
            steering = None if source is None or not source.steering else batches(source.steering)
            self.steered = joined[0].keep_within(one, steering, looks=recipe.looks)
        return joined

    def labels(self) -> list[str]:
        """What result rows call each anchor and the distillation: "kronecker", "diagonal@adapter", "distill-self"."""
        form = "" if self.form is Penalty else f"-{self.form.name}"
        found = [f"{a.kind}{'@adapter' if a.space == 'adapter' else ''}{form}" for a in self.anchors]
        recipe = self.recipe
        if recipe.distill > 0:
            own = recipe.distill_from == "self" or (recipe.source is not None and recipe.source.path == SELF)
            found.append("distill-self" if own else "distill-source")
        return found


def _reads(curvature: str) -> bool:
    """Whether a curvature is measured on data."""
    return bool(catalogue.curvature(curvature).statistics())


def _check_measured(recipe: TuneRecipe, curvature: str) -> None:
    kind = catalogue.curvature(curvature)
    reads = _reads(curvature)
    if reads and recipe.source is None:
        raise HoldfastError(
            f"--curvature {curvature} is measured on source data, and none is named",
            remedy="pass --source DATA, or --source self for text sampled from the model",
        )
    idle = [] if reads else [key for key in MEASURING if key != "space" and recipe.changed(key)]
    if idle:
        raise HoldfastError(
            f"--curvature {curvature} is not measured on data, and {', '.join(idle)} says how",
            remedy="leave it out",
        )
    check_keep(recipe.keep, kind)
    check_options(recipe.fisher, recipe.draws, recipe.per or kind.per, 1.0, recipe.source if reads else None, kind)


def _form(name: str) -> type[Anchored]:
    """The penalty on an anchor's shifts of that name."""
    forms = {known: catalogue.find("penalty", known) for known in catalogue.names("penalty")}
    anchored = [known for known, made in forms.items() if issubclass(made, Anchored)]
    if name not in anchored:
        raise HoldfastError(
            f"no penalty on an anchor's shifts is called {name!r}", wanted=f"one of {', '.join(anchored)}"
        )
    return forms[name]


def _distillation(recipe: TuneRecipe, model: nn.Module, source: Side) -> Distill:
    if recipe.distill_top_k is None and not hasattr(model, "peft_config"):
        raise HoldfastError(
            f"--method {recipe.method} has no adapter to switch off, so nothing is left to distil from",
            remedy="store the model's answers before training: --set distill_top_k=256",
        )
    return Distill(
        model,
        [collate(source.rows)],
        recipe.distill,
        sequences=recipe.distill_sequences,
        every=recipe.distill_every,
        top_k=recipe.distill_top_k,
        seed=recipe.seed,
    )
