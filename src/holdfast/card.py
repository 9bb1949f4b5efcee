"""The model card of an adapter: what was learned and what was kept."""

import math
from pathlib import Path
from typing import Any

import yaml

from holdfast import catalogue
from holdfast.front_matter import front_matter
from holdfast.report.budgets import notes, sentence
from holdfast.report.picture import picture
from holdfast.report.words import in_words

PICTURE = "learned-and-kept.svg"
SIGNATURE = "trained with Holdfast"  # by which a later run knows that the folder is its own


def write_card(path: Path, results: dict[str, Any], *, adapter: bool = True) -> None:
    """Write the card of the run's last row and its picture beside it; metadata as the hub reads it.

    Args:
        path: of the card.
        results: the content of `results.json`.
        adapter: whether the folder holds one, or a whole model.
    """
    settings, row = results["settings"], results["rows"][-1]
    drawn = _draw(row, path)
    what = f"A `{settings['method']}` adapter" if adapter else f"A fully tuned (`{settings['method']}`) copy"
    lines = [
        front_matter(_metadata(settings, row, adapter)),
        "",
        f"# {results['title']}\n",
        f"{what} of `{settings['model']}`, {SIGNATURE}.",
        "",
        "## Learned and kept",
        "",
        *([f"![How far the losses on new and old data moved]({PICTURE})", ""] if drawn else []),
        "| | before | after | change | perplexity before | after |",
        "|---|---|---|---|---|---|",
        _side("new data (target)", row, "target"),
        _side("old data (source)", row, "source"),
        "",
        f"Losses are mean nats per token on held-out text. New data: {_about(results['target'])}. "
        f"Old data: {_about(results['source'])}.",
        "",
        *_how(results, settings, row),
        *_loading(settings, adapter),
        "## Training",
        "",
        *_trained(row),
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False).strip()}\n```",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _draw(row: dict[str, Any], card: Path) -> bool:
    """Write the picture beside the card; whether there was something to draw."""
    drawn = picture(row)
    if drawn:
        card.with_name(PICTURE).write_text(drawn, encoding="utf-8")
    return bool(drawn)


def _how(results: dict[str, Any], settings: dict[str, Any], row: dict[str, Any]) -> list[str]:
    warnings = [f"\n> {warning}" for warning in results["warnings"]]
    return ["## How it held on", "", _held(settings, row), *warnings, ""]


def _loading(settings: dict[str, Any], adapter: bool) -> list[str]:
    """How to load it, and what fails where a method of Holdfast's own is not known to PEFT."""
    load = f'AutoModelForCausalLM.from_pretrained("{settings["model"] if adapter else "THIS FOLDER"}")'
    code = ["from transformers import AutoModelForCausalLM", "", f"model = {load}"]
    own = catalogue.tuner(settings["method"]).registered_by if adapter else None
    if adapter:
        code = ["from peft import PeftModel", *code, 'model = PeftModel.from_pretrained(model, "THIS FOLDER")']
    said = []
    if own is not None:
        code = [f"import {own}  # makes the method known to PEFT", *code]
        said = [
            "PEFT alone lacks it: without the first line (`pip install holdfast`) a `KeyError` ends it.",
            "",
        ]
    return ["## Loading", "", "```python", *code, "```", "", *said]


def _trained(row: dict[str, Any]) -> list[str]:
    """How many parameters trained, part by part."""
    components = row.get("trainable_by_component")
    if not components:
        return []
    share = f" of the model's {row['base_parameters']:,}" if row.get("base_parameters") else ""
    return [f"{row['trainable_parameters']:,} parameters trained{share}: {in_words(components)}.", ""]


def _metadata(settings: dict[str, Any], row: dict[str, Any], adapter: bool) -> dict[str, Any]:
    return {
        "base_model": settings["model"],
        "library_name": "peft" if adapter else "transformers",
        "tags": ["holdfast", settings["method"], *([] if row["penalty"] == "none" else [row["penalty"]])],
    }


def _side(name: str, row: dict[str, Any], side: str) -> str:
    before, after = row[f"{side}_before"], row[f"{side}_after"]
    if before is None or after is None:
        return f"| {name} | not measured | | | | |"
    change, old, new = after - before, math.exp(before), math.exp(after)
    return f"| {name} | {before:.4f} | {after:.4f} | {change:+.4f} | {old:.2f} | {new:.2f} |"


def _about(side: dict[str, Any] | None) -> str:
    return "none named" if side is None else side["description"]


def _held(settings: dict[str, Any], row: dict[str, Any]) -> str:
    if row["penalty"] == "none":
        return "It did not: plain fine-tuning."
    parts = []
    anchors = [f"an anchor ({folder})" for folder in settings["anchor"]]
    if settings["curvature"] is not None:
        of = "weights" if settings["space"] == "weights" else "adapter's start"
        anchors.append(f"the {settings['curvature']} curvature of the {of}")
    if anchors:
        parts.append(f"{' and '.join(anchors)}, {row['form']} penalty{_hard(row, 'strength', settings['strength'])}")
    if settings["distill"] > 0:
        parts.append(f"distillation from the pre-trained model{_hard(row, 'weight', settings['distill'])}")
    forecast = row.get("predicted_forgetting")
    # With an anchor it is extrapolated from the curvature; with distillation alone it was measured along the way.
    kind = "Forecast of the forgetting" if anchors else "Divergence measured while training"
    if anchors and row.get("calibrated_forecast") is not None:  # the budget's own forecast is a corrected one
        kind = "Forecast by the curvature alone"
    said = "" if forecast is None else f" {kind}: {forecast:.2g} nats per token."
    return f"By {' and '.join(parts)}.{said}{_budget(row)}"


def _hard(row: dict[str, Any], word: str, value: float) -> str:
    """How hard it held on, unless a budget decided that."""
    return (
        ""
        if row.get("budget") is not None
        else f", at {word} {value}"
        if word == "strength"
        else f" at {word} {value}"
    )


def _budget(row: dict[str, Any]) -> str:
    """What was accepted, forecast and measured; empty without a budget."""
    if row.get("budget") is None:
        return ""
    words = f" ({row['budget_words']})" if row.get("budget_words") else ""
    return " ".join(["", f"Held to a budget{words}: {sentence(row)}.", *notes(row)])
