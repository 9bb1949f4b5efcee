"""`holdfast tune` on the user's own model and data: train, measure both sides, write everything down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.batches import collate
from holdfast.card import write_card
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import require_writable, whole_folder, write_json, write_text
from holdfast.language_model import load_model, load_tokenizer
from holdfast.machine import machine, versions
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.regularizer import Regularizer
from holdfast.recipe import TuneRecipe, dump
from holdfast.report import page
from holdfast.sides import SELF, Side, held_out_loss, read_side, sampled_side
from holdfast.training import Trained, train

Say = Callable[[str], None]


def tune(recipe: TuneRecipe, out: Path, *, resume: bool = False, say: Say = print) -> dict[str, Any]:
    """Train, measure both sides before and after, and write adapter, results and report into `out`.

    Raises:
        HoldfastError: bad data, a model that can't be loaded, an anchor of another model, another recipe's folder
            to resume in, NaN losses, no space.
    """
    tuner = catalogue.tuner(recipe.method)()
    require_writable(out)
    _settle(recipe, out, resume)
    anchor = None if recipe.anchor is None else Anchor.load(recipe.anchor)
    base, tokenizer = load_model(recipe.model, recipe.dtype), load_tokenizer(recipe.model)
    check_tokenizer(tokenizer, base, length=recipe.length)
    if anchor is not None:
        anchor.check(base)
    target = read_side(recipe.target, tokenizer, recipe.length, recipe.held_out)
    source = _source(recipe, base, tokenizer)
    for name, side in (("target", target), ("source", source)):
        if side is not None:
            say(f"{name}: {side.about['description']}; {len(side.held_out)} sequences held out to measure on")
    before = {"target": held_out_loss(base, target), "source": held_out_loss(base, source)}
    torch.manual_seed(recipe.seed)
    model = tuner.prepare(base, recipe.targets, recipe.rank, recipe.alpha)
    penalties = _penalties(recipe, model, anchor, source)
    trained = train(
        model, target.rows, recipe.training, penalties=penalties, folder=out, resume=resume, seed=recipe.seed
    )
    after = {"target": held_out_loss(model, target), "source": held_out_loss(model, source)}
    row = _row(recipe, penalties, before, after, trained)
    results = _results(recipe, [row], target, source)
    _save(model, tokenizer, results, out)
    return results


def _settle(recipe: TuneRecipe, out: Path, resume: bool) -> None:
    """Write the resolved recipe; when resuming, refuse one that differs."""
    path, text = out / "recipe.resolved.yaml", dump(recipe)
    if resume and path.is_file() and path.read_text() != text:
        raise HoldfastError(
            f"the run in {out} was started with other settings than these",
            wanted=f"the settings in {path}",
            remedy=f"holdfast tune {path} --out {out} --resume, or choose another --out",
        )
    write_text(path, text)


def _source(recipe: TuneRecipe, model: Any, tokenizer: Any) -> Side | None:
    if recipe.source is None:
        return None
    if recipe.source.path != SELF:
        return read_side(recipe.source, tokenizer, recipe.length, recipe.held_out)
    return sampled_side(model, recipe.samples, min(recipe.sample_length, recipe.length), recipe.seed, 0.25)


def _penalties(recipe: TuneRecipe, model: Any, anchor: Anchor | None, source: Side | None) -> list[Regularizer]:
    found: list[Regularizer] = []
    if anchor is not None:
        found.append(Penalty(model, anchor, recipe.strength, recipe.damping))
    if recipe.distill > 0 and source is not None:
        found.append(
            Distill(
                model,
                [collate(source.rows)],
                recipe.distill,
                sequences=recipe.distill_sequences,
                every=recipe.distill_every,
                top_k=recipe.distill_top_k,
                seed=recipe.seed,
            )
        )
    return found


def _row(
    recipe: TuneRecipe,
    penalties: list[Regularizer],
    before: dict[str, float | None],
    after: dict[str, float | None],
    trained: Trained,
) -> dict[str, Any]:
    quadratic = next((p for p in penalties if isinstance(p, Penalty)), None)
    labels = [] if quadratic is None else [quadratic.anchor.kind]
    if recipe.distill > 0 and recipe.source is not None:
        labels.append("distill-self" if recipe.source.path == SELF else "distill-source")
    forecast = next((p.predicted_forgetting for p in penalties), None)
    return {
        "method": recipe.method,
        "penalty": "+".join(labels) or "none",
        "strength": recipe.strength if quadratic is not None else recipe.distill or None,
        "seed": recipe.seed,
        **{f"{side}_before": before[side] for side in before},
        **{f"{side}_after": after[side] for side in after},
        "predicted_forgetting": forecast,
        "per_layer": {} if quadratic is None else quadratic.per_layer(),
        "seconds": trained.seconds,
        "seconds_per_step": trained.seconds_per_step,
        "peak_memory_mb": trained.peak_memory_mb,
        "trainable_parameters": trained.trainable_parameters,
        "history": trained.history,
    }


def _results(recipe: TuneRecipe, rows: list[dict[str, Any]], target: Side, source: Side | None) -> dict[str, Any]:
    warnings = []
    if source is None:
        warnings.append("No source data was named: forgetting was not measured. Pass --source DATA or --source self.")
    elif source.about["path"] == SELF:
        warnings.append("Forgetting was measured on text that the model sampled itself, not on its original data.")
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
        "warnings": warnings,
    }


def _save(model: Any, tokenizer: Any, results: dict[str, Any], out: Path) -> None:
    """Adapter or fully tuned model, results and page, each whole or absent."""
    kind = "adapter" if hasattr(model, "peft_config") else "model"
    with whole_folder(out / kind) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        write_card(folder / "README.md", results)
    write_json(out / "results.json", results)
    page.write(results, out / "report.html")
