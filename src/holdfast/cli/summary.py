"""The table at the end of a run."""

import math
from typing import Any

from holdfast.cli.output import console, number, print_table, share
from holdfast.report.words import in_words

SIDES = (("source (old data)", "source"), ("target (new data)", "target"))
EVALUATED = ("none", "adapter", "model")  # methods of rows that were not trained in this run
WIDE = 118  # columns of a terminal that shows everything
OF_PLAIN = ("of\nplain", " of\nplain")  # of plain fine-tuning's forgetting, of its learning


def print_rows(results: dict[str, Any]) -> None:
    """Learning and forgetting of every row; one row alone is shown side by side, before and after."""
    rows = results["rows"]
    if len(rows) == 1:
        _print_one(rows[0])
    else:
        _print_several(rows)


def change(row: dict[str, Any], side: str) -> float | None:
    """after - before of one side, where both were measured."""
    before, after = row.get(f"{side}_before"), row.get(f"{side}_after")
    return None if before is None or after is None else after - before


def _print_one(row: dict[str, Any]) -> None:
    lines = []
    for name, side in SIDES:
        before, after = row.get(f"{side}_before"), row.get(f"{side}_after")
        if before is None and after is None:
            continue  # not asked for
        moved = change(row, side)
        lines.append(
            [
                name,
                number(before),
                number(after),
                "-" if moved is None else f"{moved:+.3f}",
                _perplexity(before),
                _perplexity(after),
            ]
        )
    header = ["", "loss before", "after", "change", "perplexity before", "after"]
    if row["method"] == "none":  # a model alone has no before and after
        header, lines = ["", "loss", "perplexity"], [[name, loss, spread] for name, loss, _, _, spread, _ in lines]
    print_table(f"{_what(row)}; losses in nats per token", header, lines, right=1)
    said = _budget(row)
    if row.get("predicted_forgetting") is not None and not said:
        said.append(f"forecast of the forgetting {row['predicted_forgetting']:.2g} nats per token")
    if row.get("trainable_parameters"):
        trained = f"{row['trainable_parameters']:,} trained parameters"
        parts = row.get("trainable_by_component", {})
        said.append(f"{trained} ({in_words(parts)})" if len(parts) > 1 else trained)
    said += [f"{row[key]:.0f} {unit}" for key, unit in (("seconds", "s"), ("peak_memory_mb", "MB")) if row.get(key)]
    console.print("; ".join(said), highlight=False, soft_wrap=True)


def _what(row: dict[str, Any]) -> str:
    if row["method"] in EVALUATED:
        return row["penalty"]
    if row["penalty"] == "none":
        return f"{row['method']} without holding on"
    held = f"{row['method']} held on by {row['penalty']}"
    if row.get("strength") is not None:
        return f"{held} at strength {row['strength']:g}"
    return f"{held} within a {'forecast' if row.get('steered_by') == 'forecast' else 'budget'}"


def _budget(row: dict[str, Any]) -> list[str]:
    """Budget, forecast and measurement side by side; nothing where none was given."""
    if row.get("budget") is None:
        return []
    unit, forecast, measured = row.get("budget_unit", "nats"), row.get("calibrated_forecast"), row.get("forgetting")
    error = row.get("forgetting_error")
    said = [f"budget {row['budget_words']}"]
    if forecast is not None:
        kind = "forecast, uncorrected," if row["steered_by"] == "forecast" else "expected from its measurements"
        said.append(f"{kind} {forecast:.3g} {unit}")
    if measured is not None:
        spread = "" if error is None else f" (± {error:.1g})"
        said.append(f"measured {measured:.3g}{spread} {unit} on data that steered nothing")
    if row.get("scaled_by", 1.0) < 1:
        said.append(f"scaled to {row['scaled_by']:.0%} to get inside")
    return said


def _print_several(rows: list[dict[str, Any]]) -> None:
    """With plain fine-tuning as the measure where it was run."""
    plain = {row.get("seed"): row for row in rows if row["penalty"] == "none"}
    lines = [_line(row, plain.get(row.get("seed"))) for row in rows]
    hidden = set() if plain else set(OF_PLAIN)
    if len({row.get("seed") for row in rows}) == 1:
        hidden.add("seed")
    if console.width < WIDE:
        hidden |= {"source\nloss", "perplexity", "target\nloss"} | ({"MB"} if "seed" not in hidden else set())
    kept = [name for name in lines[0] if name not in hidden]
    print_table(
        f"losses in nats per token; {_before(rows[0])}",
        [name.strip(" ") for name in kept],
        [[line[name] for name in kept] for line in lines],
        right=1,
    )


def _before(row: dict[str, Any]) -> str:
    sides = [
        f"{side} {row[f'{side}_before']:.3f} (perplexity {_perplexity(row[f'{side}_before'])})"
        for side in ("source", "target")
        if row.get(f"{side}_before") is not None
    ]
    return f"before: {', '.join(sides)}"


def _line(row: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, str]:
    forgotten, learned = change(row, "source"), change(row, "target")
    return {
        "held on by": row["penalty"].replace("+", " + "),
        "strength": _strength(row),
        "seed": str(row.get("seed", "-")),
        "source\nloss": number(row.get("source_after")),
        "perplexity": _perplexity(row.get("source_after")),
        "forgotten": number(forgotten),
        OF_PLAIN[0]: _of_plain(forgotten, plain, "source"),
        "forecast": number(row.get("predicted_forgetting")),
        "target\nloss": number(row.get("target_after")),
        "learned": number(None if learned is None else -learned),
        OF_PLAIN[1]: _of_plain(learned, plain, "target"),
        "seconds": number(row.get("seconds"), 0),
        "MB": number(row.get("peak_memory_mb"), 0),
    }


def _strength(row: dict[str, Any]) -> str:
    if row.get("budget") is not None:
        return f"budget {row['budget']:.3g}" + (" points" if row.get("budget_unit") == "points" else "")
    return "-" if row.get("strength") is None else f"{row['strength']:g}"


def _of_plain(mine: float | None, plain: dict[str, Any] | None, side: str) -> str:
    other = None if plain is None else change(plain, side)
    return share(mine / other if mine is not None and other else None)


def _perplexity(loss: float | None) -> str:
    return "-" if loss is None else f"{math.exp(min(loss, 700.0)):.1f}"
