"""The table at the end of a run."""

import math
from typing import Any

from holdfast.cli.output import number, print_table, share


def print_rows(results: dict[str, Any]) -> None:
    """Learning and forgetting of every row, with plain fine-tuning as the measure where it was run."""
    rows = results["rows"]
    plain = {row["seed"]: row for row in rows if row.get("penalty") == "none"}
    header = ["held on by", "strength", "source loss", "perplexity", "forgotten", "forecast", "target loss", "learned"]
    compared = bool(plain) and len(rows) > 1
    if compared:
        header += ["forgotten, of plain", "learned, of plain"]
    header += ["seconds", "MB"]
    seeds = {row["seed"] for row in rows}
    lines = []
    for row in rows:
        line = _line(row, seeds)
        if compared:
            line[8:8] = _against(row, plain.get(row["seed"]))
        lines.append(line)
    print_table(
        "nats per token; forgotten = rise of the source loss, learned = fall of the target loss",
        header,
        lines,
        right=1,
    )


def change(row: dict[str, Any], side: str) -> float | None:
    """after - before of one side, where both were measured."""
    before, after = row.get(f"{side}_before"), row.get(f"{side}_after")
    return None if before is None or after is None else after - before


def _line(row: dict[str, Any], seeds: set[int]) -> list[str]:
    forgotten, learned = change(row, "source"), change(row, "target")
    name = row["penalty"] + (f" (seed {row['seed']})" if len(seeds) > 1 else "")
    after = row.get("source_after")
    return [
        name,
        number(row.get("strength"), 2),
        _arrow(row, "source"),
        "-" if after is None else f"{math.exp(row['source_before']):.1f} → {math.exp(after):.1f}",
        number(forgotten),
        number(row.get("predicted_forgetting")),
        _arrow(row, "target"),
        number(None if learned is None else -learned),
        number(row.get("seconds"), 0),
        number(row.get("peak_memory_mb"), 0),
    ]


def _arrow(row: dict[str, Any], side: str) -> str:
    after = row.get(f"{side}_after")
    return "-" if after is None else f"{row[f'{side}_before']:.3f} → {after:.3f}"


def _against(row: dict[str, Any], plain: dict[str, Any] | None) -> list[str]:
    cells = []
    for side in ("source", "target"):
        mine, other = change(row, side), None if plain is None else change(plain, side)
        cells.append(share(mine / other if mine is not None and other else None))
    return cells
