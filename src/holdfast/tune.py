"""`holdfast tune` on the user's own model and data: train, measure both sides, write everything down."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast import checkpoints
from holdfast.anchors.store import Store
from holdfast.before_after import BeforeAfter
from holdfast.checkpoints import Run
from holdfast.data import check_tokenizer
from holdfast.files import output_folder
from holdfast.holding import Holding
from holdfast.language_model import load_model, load_tokenizer
from holdfast.machine import machine, versions
from holdfast.moved import shift_sizes
from holdfast.noted import noted
from holdfast.outcome import caveats, outcome
from holdfast.penalties.anchored import Anchored
from holdfast.penalties.regularizer import Regularizer
from holdfast.recipe import dump
from holdfast.sides import SELF, Side, fingerprint, read_side, sampled_side
from holdfast.training import Trained, train
from holdfast.tune_recipe import TuneRecipe
from holdfast.tuned import PRODUCTS, check_destination, save, write_report
from holdfast.tuners.tuner import Tuner
from holdfast.tuning_method import Trains, check_held, put_on, size_in_words, sized, tuner_of

Say = Callable[[str], None]


def tune(
    recipe: TuneRecipe,
    out: Path,
    *,
    resume: bool = False,
    say: Say = print,
    on_step: Callable[[int, int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    store: Store | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Train, measure both sides before and after, and write adapter, results and report into `out`.

    What an earlier run left in `out` stays as it is until this one has finished; its checkpoints go with this run's
    first checkpoint.

    Args:
        recipe: what was asked for.
        out: the run's folder.
        resume: go on from its last checkpoint.
        say: for lines to read.
        on_step: called with (step, steps) after each step, instead of a progress bar.
        on_log: called with what was logged.
        store: where measured anchors are kept for other runs; None keeps none.
        report: write report.html, which is megabytes, too.

    Raises:
        HoldfastError: bad data, a model that can't be loaded, an anchor of another model, another recipe's folder
            to resume in, NaN losses, no space.
    """
    tuner = tuner_of(recipe)
    holding = Holding(recipe, say, store)
    check_held(tuner, recipe, holding)
    with output_folder(out), noted() as notes:
        ready = _prepared(recipe, tuner, holding, out, resume, say)
        trained = train(
            ready.model,
            ready.sides["target"].rows,
            recipe.training,
            penalties=ready.joined,
            callbacks=ready.tuner.callbacks(),
            on_measure=ready.measured.now,
            on_step=on_step,
            on_log=on_log,
            quiet=on_step is not None,
            folder=out,
            run=ready.run,
            checkpoint=ready.checkpoint,
            seed=recipe.seed,
        )
        ready.measured.finish()
        row = _row(recipe, ready, holding, trained)
        notes += caveats(holding.steered, ready.measured.readings.get("source"), trained.scaled_by)
        results = _results(recipe, [row], ready.sides, notes)
        save(ready.model, ready.tokenizer, results, ready.run, out)
        if report:
            write_report(results, out, say)
    return results


@dataclass(frozen=True)
class _Ready:
    """What a run trains with, as it stands before its first step."""

    model: Any
    tuner: Tuner
    trains: Trains
    tokenizer: Any
    sides: dict[str, Any]
    penalties: list[Regularizer]
    joined: list[Regularizer]
    measured: BeforeAfter
    run: Run
    checkpoint: Path | None


def _prepared(recipe: TuneRecipe, tuner: Tuner, holding: Holding, out: Path, resume: bool, say: Say) -> _Ready:
    checkpoint = _checkpoint(recipe, out, say) if resume else None
    base, tokenizer = load_model(recipe.model, recipe.dtype), load_tokenizer(recipe.model)
    check_tokenizer(tokenizer, base, length=recipe.length)
    holding.check(base)
    sides = _sides(recipe, base, tokenizer, say)
    run = Run(dump(recipe), {name: fingerprint(side) for name, side in sides.items()})
    if checkpoint is not None:
        checkpoints.check_data(checkpoint, run.data)
    holding.measure(base, sides["source"], "weights")
    text = _distilled(recipe, base, sides["source"])
    torch.manual_seed(recipe.seed)
    asked, tuner = tuner, sized(tuner, base, recipe.targets, recipe.parameters)
    rows, size = sides["target"].rows, recipe.training.batch_size
    model, trains = put_on(tuner, base, recipe.targets, rows, size, recipe.length, recipe.seed)
    say(f"{size_in_words(asked, tuner)}: {trains}" if recipe.parameters else str(trains))
    for product in PRODUCTS:
        check_destination(out / product)
    holding.measure(model, sides["source"], "adapter")
    run = replace(run, start=holding.start(model))
    if checkpoint is not None:
        checkpoints.check_start(checkpoint, run.start)
    penalties = holding.penalties(model, text)
    measured = BeforeAfter(model, sides, next(iter(recipe.budgets), None))
    joined = holding.joined(model, penalties, sides["source"])
    return _Ready(model, tuner, trains, tokenizer, sides, penalties, joined, measured, run, checkpoint)


def _checkpoint(recipe: TuneRecipe, out: Path, say: Say) -> Path:
    checkpoint = checkpoints.last(out)
    checkpoints.check_recipe(checkpoint, dump(recipe))
    say(f"going on from step {checkpoints.step(checkpoint)}")
    return checkpoint


def _sides(recipe: TuneRecipe, model: Any, tokenizer: Any, say: Say) -> dict[str, Any]:
    """Target and source; the target first: it needs nothing of the model's own making."""
    sides: dict[str, Side | None] = {}
    for name, read in (("target", _target), ("source", _source)):
        side = sides[name] = read(recipe, model, tokenizer)
        if side is not None:
            steers = f", {len(side.steering)} steer the budget" if side.steering else ""
            say(f"{name}: {side.about['description']}; {len(side.held_out)} sequences held out to measure on{steers}")
    return sides


def _target(recipe: TuneRecipe, model: Any, tokenizer: Any) -> Side:
    return read_side(recipe.target, tokenizer, recipe.length, recipe.held_out)


def _source(recipe: TuneRecipe, model: Any, tokenizer: Any) -> Side | None:
    if recipe.source is None:
        return None
    steering = recipe.steering if len(recipe.budget) == 1 else 0.0
    if recipe.source.path != SELF:
        return read_side(recipe.source, tokenizer, recipe.length, recipe.held_out, steering)
    length = min(recipe.sample_length, recipe.length)
    return sampled_side(model, recipe.samples, length, recipe.seed, 0.25, 0.25 if steering else 0.0)


def _distilled(recipe: TuneRecipe, model: Any, source: Side | None) -> Side | None:
    """What distillation reads: the source, or text that the model samples now, before it has moved."""
    own = recipe.source is not None and recipe.source.path == SELF
    if not recipe.distill or recipe.distill_from == "source" or own:
        return source
    return sampled_side(model, recipe.samples, min(recipe.sample_length, recipe.length), recipe.seed, 0.0)


def _row(recipe: TuneRecipe, ready: _Ready, holding: Holding, trained: Trained) -> dict[str, Any]:
    anchored = next((p for p in ready.penalties if isinstance(p, Anchored)), None)
    forecast = next((p.predicted_forgetting for p in ready.penalties), None)
    return {
        "method": recipe.method,
        "penalty": "+".join(holding.labels()) or "none",
        "form": None if anchored is None else anchored.name,
        "strength": None if recipe.budget else recipe.strength if anchored is not None else recipe.distill or None,
        "together": recipe.together,
        "seed": recipe.seed,
        **outcome(holding.steered),
        "scaled_by": trained.scaled_by,
        **ready.measured.row(),
        "along": trained.along,
        "shift_sizes": shift_sizes(ready.model, anchored),
        "predicted_forgetting": forecast,
        "per_layer": {} if anchored is None or anchored.predicted_forgetting is None else anchored.per_layer(),
        "anchor_seconds": holding.seconds,
        "seconds": trained.seconds,
        "seconds_per_step": trained.seconds_per_step,
        "peak_memory_mb": trained.peak_memory_mb,
        "trainable_parameters": trained.trainable_parameters,
        "trainable_by_component": ready.trains.components,
        "base_parameters": ready.trains.size,
        "tuner": ready.trains.options,
        "history": trained.history,
    }


def _results(
    recipe: TuneRecipe, rows: list[dict[str, Any]], sides: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    target, source = sides["target"], sides["source"]
    caveats = list(notes)
    if source is None:
        caveats.append("No source data was named: forgetting was not measured. Pass --source DATA or --source self.")
    elif source.about["path"] == SELF:
        caveats.append("Forgetting was measured on text that the model sampled itself, not on its original data.")
    return {
        "schema": 1,
        "title": f"{Path(recipe.model).name} tuned on {Path(recipe.target.path).name}",
        "question": f"How much does {recipe.model} learn of {recipe.target.path}, and how much does it forget?",
        "settings": recipe.model_dump(mode="json"),
        "machine": machine(),
        "versions": versions(),
        "source": None if source is None else source.about,
        "target": target.about,
        "rows": rows,
        "warnings": caveats,
    }
