"""The model card of a fitted adapter: what is left of it, and what it was before."""

import math
from pathlib import Path
from typing import Any

import yaml

from holdfast.fitting.ways import way
from holdfast.front_matter import front_matter

SIGNATURE = "fitted with Holdfast"  # by which a later fit knows that the folder is its own
LISTED = 10  # layers


def write_card(path: Path, results: dict[str, Any], original: Path) -> None:
    """Write the card of a fit.

    Args:
        path: of the card.
        results: the content of results.json.
        original: the card that came, if there is one: its metadata stay, and its text follows.
    """
    settings, row = results["settings"], results["rows"][-1]
    metadata, text = _parts(original)
    tags = metadata.get("tags") or []
    tags = tags if isinstance(tags, list) else [tags]
    metadata |= {
        "base_model": settings["model"],
        "library_name": "peft" if row["method"] == "adapter" else "transformers",
        "tags": list(dict.fromkeys([*tags, "holdfast"])),
    }
    lines = [
        front_matter(metadata),
        "",
        f"# {results['title']}",
        "",
        f"`{settings['adapter']}` on `{settings['model']}`, {SIGNATURE}: its shift was shrunk in closed form, without "
        f"training, to a forgetting budget of {row['budget_words']}.",
        "",
        "| loss, nats per token | base | as it came | fitted |",
        "|---|---|---|---|",
        _side("new data (target)", row, "target"),
        _side("old data (source)", row, "source"),
        *_forecast(row),
        "",
        *_how(row),
        *(f"\n> {warning}" for warning in results["warnings"]),
        "",
        "```yaml",
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        *(["", "## As it came", "", text] if text else []),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _side(name: str, row: dict[str, Any], side: str) -> str:
    losses = [row[f"{side}_{when}"] for when in ("before", "unfitted", "after")]
    if None in losses:
        return f"| {name} | not measured | | |"
    return f"| {name} | " + " | ".join(f"{loss:.4f} ({math.exp(min(loss, 700.0)):.2f})" for loss in losses) + " |"


def _forecast(row: dict[str, Any]) -> list[str]:
    came, fitted = row["predicted_unfitted"], row["predicted_forgetting"]
    return [] if came is None else [f"| forecast of the forgetting | 0 | {came:.4g} | {fitted:.4g} |"]


def _how(row: dict[str, Any]) -> list[str]:
    if not row["changed"]:
        return ["It was inside the budget as it came, and is an exact copy."]
    by = "what was measured on old data" if row["steered_by"] == "measurement" else "the anchor's forecast alone"
    least = sorted(row["factors"].items(), key=lambda pair: pair[1])[:LISTED]
    found = [
        f"Shrunk: {way(row['how']).what}; how far was decided by {by}. In brackets: perplexity.",
        "",
        "| layer | price as it came | kept of its length |",
        "|---|---|---|",
        *(f"| `{name}` | {row['per_layer_unfitted'][name]:.3g} | {factor:.3f} |" for name, factor in least),
    ]
    if len(row["factors"]) > LISTED:
        found += ["", f"The {LISTED} of {len(row['factors'])} layers that were shrunk most; results.json has all."]
    return found


def _parts(card: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card; what is not readable as metadata counts as text."""
    if not card.is_file():
        return {}, ""
    text = card.read_text(encoding="utf-8", errors="replace").strip()
    if text.startswith("---\n") and text.count("\n---") >= 1:
        head, _, body = text[4:].partition("\n---")
        try:
            metadata = yaml.safe_load(head)
        except yaml.YAMLError:
            return {}, text
        if isinstance(metadata, dict):
            return metadata, body.strip()
    return {}, text
