"""`holdfast fit` on the user's own adapter: shrink it into a budget, measure both sides, write everything down."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast import fit_product as product
from holdfast.anchor import Anchor
from holdfast.before_after import batches, finite
from holdfast.budgets.budget import Budget
from holdfast.budgets.gauge import Gauge, Reading
from holdfast.data import check_tokenizer
from holdfast.files import output_folder
from holdfast.fit_recipe import FitRecipe
from holdfast.fitting.fit import Fitted, check_budget, fit
from holdfast.fitting.refusals import check_anchor
from holdfast.fitting.ways import way
from holdfast.language_model import load_model, load_tokenizer
from holdfast.machine import machine, peak_memory_mb, versions
from holdfast.noted import noted
from holdfast.sides import SELF, Side, limited, read_side, sampled_side

SIDES = ("source", "target")
NOTHING = 0.1  # of every layer's shift: what was learned is gone
Readings = dict[str, Reading]


def fit_folder(recipe: FitRecipe, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fit an adapter, or a wholly tuned model, and write the fitted one and results.json into `out`.

    One part of the source steers, another, which steered nothing, is reported; likewise of the target.

    Raises:
        HoldfastError: an anchor of another model; an adapter of another model or one that can't be scaled; a budget
            that is not one, or that needs source data; bad data; an `out` that holds other things or the adapter.
    """
    started = time.perf_counter()
    budget, kind = Budget.parse(recipe.budget), way(recipe.how)
    check_budget(budget, measured=recipe.source is not None)
    came = product.read(recipe.adapter)
    product.check_destination(out, recipe.adapter)
    anchor = Anchor.load(recipe.anchor)
    check_anchor(anchor, measured=recipe.source is not None)
    name = recipe.model or came.base or str(anchor.facts["base_model"])
    with output_folder(out), noted() as notes:
        base = load_model(name, recipe.dtype)
        anchor.check(base)
        sides = _sides(recipe, name, base, say)
        gauges = _gauges(base, sides, budget, recipe.max_items)
        for gauge in gauges.values():
            gauge.prepare()
        model, reference = came.load(base, anchor, recipe.dtype)
        gauges = _gauges(model, sides, budget, recipe.max_items, before=gauges)
        unfitted = {side: gauge.look(whole=True) for side, gauge in gauges.items()}
        fitted = fit(
            model,
            anchor,
            budget,
            kind.name,
            source=_steering(sides["source"], recipe.max_items),
            target=_steering(sides["target"], recipe.max_items) if recipe.worth == "target" else None,
            reference=reference,
        )
        after = {side: gauge.look(whole=True) for side, gauge in gauges.items()} if fitted.changed else unfitted
        row = _row(recipe, came, fitted, all(curvature.forecasts for curvature in anchor.curvatures.values()))
        row |= _measured(gauges, unfitted, after)
        row |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb()}
        results = _results(
            recipe, name, row, sides, [*came.notes(name), *notes, *_caveats(recipe, budget, fitted, row)]
        )
        product.save(model if fitted.changed else None, came, results, out)
    return results


def _sides(recipe: FitRecipe, name: str, base: Any, say: Callable[[str], None]) -> dict[str, Side | None]:
    sides: dict[str, Side | None] = dict.fromkeys(SIDES)
    if recipe.source is None and recipe.target is None:
        return sides
    tokenizer = load_tokenizer(name)
    check_tokenizer(tokenizer, base, length=recipe.length)
    for side, data in (("source", recipe.source), ("target", recipe.target)):
        if data is None:
            continue
        if side == "source" and data.path == SELF:
            share = recipe.held_out / (1 - recipe.held_out)  # of what is beside it, as `sampled_side` counts
            length = min(recipe.sample_length, recipe.length)
            read = sampled_side(base, recipe.samples, length, recipe.seed, share)
        else:
            read = read_side(data, tokenizer, recipe.length, recipe.held_out)
        sides[side] = read
        say(f"{side}: {read.about['description']}; {len(read.held_out)} sequences steer nothing and are reported")
    return sides


def _steering(side: Side | None, max_items: int) -> list[Any] | None:
    return None if side is None else batches(limited(side.rows, max_items))


def _gauges(
    model: Any,
    sides: Mapping[str, Side | None],
    budget: Budget,
    max_items: int,
    before: Mapping[str, Gauge] | None = None,
) -> dict[str, Gauge]:
    """What measures the rows that steer nothing; `before`: the base model's, whose losses these start from."""
    found = {}
    for name, side in sides.items():
        if side is None:
            continue
        rows = batches(limited(side.held_out, max_items))
        found[name] = Gauge(model, rows, budget if name == "source" else None, name=name, progress=True)
        if before is not None:
            found[name].restore(before[name].state())
    return found


def _measured(gauges: Mapping[str, Gauge], unfitted: Readings, after: Readings) -> dict[str, Any]:
    """Losses in nats per token of base, adapter and fitted adapter, and forgetting in the budget's unit."""
    row: dict[str, Any] = {f"{side}_{when}": None for side in SIDES for when in ("before", "unfitted", "after")}
    for side, gauge in gauges.items():
        row[f"{side}_before"] = gauge.loss
        row[f"{side}_unfitted"], row[f"{side}_after"] = unfitted[side].loss, after[side].loss
    source = after.get("source")
    return row | {
        "forgetting": None if source is None else source.amount,
        "forgetting_error": None if source is None else finite(source.error),
        "forgetting_unfitted": None if source is None else unfitted["source"].amount,
    }


def _row(recipe: FitRecipe, came: product.Came, fitted: Fitted, forecasts: bool) -> dict[str, Any]:
    one = len(set(fitted.factors.values())) == 1 and not fitted.rank_lost
    return {
        "method": came.kind,
        "penalty": f"fit-{fitted.how}",
        "how": fitted.how,
        "strength": None,
        "seed": recipe.seed,
        "budget": fitted.limit,
        "budget_unit": fitted.unit,
        "budget_words": fitted.budget,
        "steered_by": fitted.steered_by,
        "changed": fitted.changed,
        **({"scaled_by": next(iter(fitted.factors.values()))} if one else {}),
        "predicted_unfitted": fitted.forecast_before if forecasts else None,
        "predicted_forgetting": fitted.forecast_after if forecasts else None,
        "per_layer_unfitted": fitted.prices_before,
        "per_layer": fitted.prices_after,
        "factors": fitted.factors,
        "worths": fitted.worths,
        "rank_lost": fitted.rank_lost,
        "search": [{"forecast": forecast, "forgetting": found} for forecast, found in fitted.search],
        "trainable_parameters": 0,
    }


def _caveats(recipe: FitRecipe, budget: Budget, fitted: Fitted, row: Mapping[str, Any]) -> list[str]:
    found = []
    if not fitted.changed:
        by = "" if recipe.source is not None else ", as the forecast has it"
        found.append(
            f"The adapter was inside its budget of {fitted.budget} as it came{by}: it was copied, not changed."
        )
    elif max(fitted.factors.values()) < NOTHING:
        found.append(
            f"Next to nothing of the adapter is left: at most {max(fitted.factors.values()):.1%} of any layer."
        )
    if recipe.source is None:
        found.append(
            "No source data was named: the anchor's forecast alone decided, and forecasts are low (a Kronecker anchor "
            "says about 0.4 of what plain LoRA forgets; one of samples-joint 0.9 to 1.2). Pass --source DATA or "
            "--source self to measure."
        )
    elif recipe.source.path == SELF:
        found.append("Forgetting was measured on text that the model sampled itself, not on its original data.")
    if row["forgetting"] is not None and row["forgetting"] > fitted.limit:
        found.append(
            f"On the rows that steered nothing it forgot {row['forgetting']:.3g} {fitted.unit}, more than the budget "
            f"of {fitted.limit:.3g}: the budget is held on the rows that steered."
        )
    return found


def _results(
    recipe: FitRecipe, name: str, row: dict[str, Any], sides: Mapping[str, Side | None], warnings: list[str]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "title": f"{recipe.adapter.resolve().name} of {Path(name).name}, fitted to a budget of {row['budget_words']}",
        "question": f"What is left of {recipe.adapter} when it may make {name} forget no more than a budget?",
        "settings": recipe.model_dump(mode="json") | {"model": name},
        "machine": machine(),
        "versions": versions(),
        **{side: None if found is None else found.about for side, found in sides.items()},
        "rows": [row],
        "warnings": warnings,
    }
