"""The same on the user's own model and data: anchor, tune, evaluate."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.batches import Row, collate
from holdfast.card import write_card
from holdfast.data import Columns, check_tokenizer, read, split_off, tokenise
from holdfast.errors import HoldfastError
from holdfast.evaluation import mean_loss
from holdfast.files import require_writable, whole_folder, write_json, write_text
from holdfast.language_model import load_adapter, load_model, load_tokenizer
from holdfast.machine import machine, versions
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.regularizer import Regularizer
from holdfast.recipe import DataSettings, TuneRecipe, dump
from holdfast.report import page
from holdfast.sampling import sample_from
from holdfast.training import Trained, train

SELF = "self"
MEASURED_ITEMS = 100_000  # scored tokens per side at most: a standard error of about 0.005 nats

Say = Callable[[str], None]


@dataclass
class Side:
    """One data set: what is trained or distilled on, what is measured on, and what it is."""

    rows: list[Row]
    held_out: list[Row]
    about: dict[str, Any]


def anchor_on(
    name: str,
    source: DataSettings | None,
    out: Path,
    *,
    curvature: str,
    targets: str | list[str],
    fisher: Any,
    max_items: int,
    fraction: float,
    length: int,
    samples: int,
    batch_size: int,
    dtype: str,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Estimate and save an anchor; returns what it is and what it cost."""
    catalogue.curvature(curvature)
    require_writable(out.parent)
    model, tokenizer = load_model(name, dtype), load_tokenizer(name)
    check_tokenizer(tokenizer, model)
    rows: list[Row] | None = None
    about: dict[str, Any] = {}
    if source is not None:
        side = _sampled(model, samples, length, seed, 0.0) if source.path == SELF else _read(source, tokenizer, length)
        rows, about = side.rows, side.about
        say(f"source: {about['description']}")
    started = time.perf_counter()
    measured = Anchor.estimate(
        model,
        None if rows is None else [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)],
        curvature=curvature,
        targets=targets,
        fisher=fisher,
        max_items=max_items,
        fraction=fraction,
        seed=seed,
    )
    measured.facts["base_model"] = name
    measured.facts["source"] = about
    measured.save(out)
    return {
        "curvature": curvature,
        "layers": len(measured.curvatures),
        "items": measured.items,
        "item": "token",
        "seconds": time.perf_counter() - started,
        "megabytes": sum(file.stat().st_size for file in out.iterdir()) / 1e6,
        "source": about,
        "out": str(out),
    }


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
    check_tokenizer(tokenizer, base)
    if anchor is not None:
        anchor.check(base)
    target = _read(recipe.target, tokenizer, recipe.length, recipe.held_out)
    source = _source(recipe, base, tokenizer, out, resume)
    for name, side in (("target", target), ("source", source)):
        if side is not None:
            say(f"{name}: {side.about['description']}; {len(side.held_out)} sequences held out to measure on")
    before = {"target": _loss(base, target), "source": _loss(base, source)}
    torch.manual_seed(recipe.seed)
    model = tuner.prepare(base, recipe.targets, recipe.rank, recipe.alpha)
    penalties = _penalties(recipe, model, anchor, source)
    trained = train(
        model, target.rows, recipe.training, penalties=penalties, folder=out, resume=resume, seed=recipe.seed
    )
    after = {"target": _loss(model, target), "source": _loss(model, source)}
    row = _row(recipe, penalties, before, after, trained)
    results = _results(recipe, [row], target, source)
    _save(model, tokenizer, results, out)
    return results


def evaluate(
    name: str,
    adapter: Path | None,
    sides: Mapping[str, DataSettings | None],
    *,
    length: int,
    max_items: int,
    dtype: str,
) -> dict[str, Any]:
    """Losses of the base model and, with an adapter, of the adapted one."""
    model, tokenizer = load_model(name, dtype), load_tokenizer(name)
    check_tokenizer(tokenizer, model)
    read_sides = {key: None if data is None else _read(data, tokenizer, length) for key, data in sides.items()}
    rows = {key: [] if side is None else _limit(side.rows, max_items) for key, side in read_sides.items()}
    before = {
        key: mean_loss(model, part, name=key, progress=True).nats if part else None for key, part in rows.items()
    }
    after = dict.fromkeys(before)
    if adapter is not None:
        model = load_adapter(model, str(adapter))
        after = {
            key: mean_loss(model, part, name=key, progress=True).nats if part else None for key, part in rows.items()
        }
    row: dict[str, Any] = {"method": "none" if adapter is None else "adapter", "penalty": str(adapter or "base model"), "seed": 0}
    for key in ("source", "target"):
        row |= {f"{key}_before": before[key], f"{key}_after": after[key] if adapter is not None else before[key]}
    about = {key: None if side is None else side.about for key, side in read_sides.items()}
    return {"schema": 1, "machine": machine(), "versions": versions(), **about, "rows": [row]}


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


def _read(data: DataSettings, tokenizer: Any, length: int, held_out: float = 0.0) -> Side:
    documents = read(data.path, Columns(data.text, data.prompt, data.completion))
    rows = tokenise(documents, tokenizer, length=length)
    kept, measured = split_off(rows, held_out, seed=0) if held_out else (rows, [])
    if held_out and (not kept or not measured):
        raise HoldfastError(
            f"{data.path} is too short: {len(rows)} sequences of up to {length} tokens",
            wanted="enough to train on and to hold some out",
            remedy="give more data, or a smaller --length",
        )
    about = {"path": data.path, "description": documents.description, "sha256": documents.sha256, "item": "token"}
    return Side(kept, measured, about)


def _source(recipe: TuneRecipe, model: Any, tokenizer: Any, out: Path, resume: bool) -> Side | None:
    if recipe.source is None:
        return None
    if recipe.source.path != SELF:
        return _read(recipe.source, tokenizer, recipe.length, recipe.held_out)
    return _sampled(model, recipe.samples, recipe.length, recipe.seed, 0.25)


def _sampled(model: Any, samples: int, length: int, seed: int, held_out: float) -> Side:
    """Text of the model's own; a part of it is held out, since the loss on text distilled on would flatter."""
    measured = round(samples * held_out)
    rows: list[Any] = [*sample_from(model, samples + measured, length, seed=seed)]
    about = {"path": SELF, "description": f"{samples} sequences sampled from the model itself", "item": "token"}
    return Side(rows[:samples], rows[samples:], about)


def _limit(rows: list[Row], max_items: int) -> list[Row]:
    kept, items = [], 0
    for row in rows:
        if items >= max_items:
            break
        kept.append(row)
        items += len(row["input_ids"])
    return kept


def _loss(model: Any, side: Side | None) -> float | None:
    return None if side is None else mean_loss(model, _limit(side.held_out, MEASURED_ITEMS), progress=True).nats


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
