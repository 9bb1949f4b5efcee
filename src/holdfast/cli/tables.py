"""What a study shows, as tables in the terminal."""

from typing import Any

from holdfast.cli.output import console, number, print_table, share

MOST = 20  # settings that are listed; report.html has all


def print_frontier(results: dict[str, Any]) -> None:
    """The settings by what they gained, forgetting at equal learning, and the recommendation."""
    found = results["frontier"]
    rows = found["pareto"]
    chosen = sorted(sorted(rows, key=lambda row: STATUS.index(row["status"]))[:MOST], key=lambda row: -row["gain"])
    left = f"; {len(rows) - len(chosen)} more in report.html" if len(rows) > len(chosen) else ""
    print_table(
        f"nats per token, means over seeds with 95 % intervals{left}",
        ["way", "seeds", "learned", "forgotten", "front"],
        [
            [_named(row), str(row["seeds"]), _around(row, "gain"), _around(row, "forgetting"), MARKS[row["status"]]]
            for row in chosen
        ],
        right=1,
    )
    _print_matched(found["matched_learning"])
    for warning in results["warnings"]:
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
    console.print(found["recommendation"], style="bold", highlight=False, markup=False, soft_wrap=True)


STATES = ("done", "running", "failed", "waiting")
STATUS = ["on the front", "not told apart from it", "beaten"]
MARKS = dict(zip(STATUS, ["on it", "perhaps", "-"], strict=True))


def _named(row: dict[str, Any]) -> str:
    """`kronecker, strength 8`."""
    return ", ".join(filter(None, (row["way"], row["setting"])))


def _around(row: dict[str, Any], name: str) -> str:
    """`0.812 ± 0.010`."""
    high = row[f"{name}_high"]
    return number(row[name]) + ("" if high is None else f" ± {high - row[name]:.3f}")


def _print_matched(rows: list[dict[str, Any]]) -> None:
    """A line for each way, a column for each share of plain gain."""
    shares = list(dict.fromkeys(row["gain_kept"] for row in rows))
    if not shares:
        return
    ways = list(dict.fromkeys(row["way"] for row in rows))
    by = {(row["way"], row["gain_kept"]): row for row in rows}
    print_table(
        "forgotten at equal learning: nats per token where that share of plain fine-tuning's gain is kept; ≤: at most",
        ["way", *(share(kept) for kept in shares)],
        [[way, *(_bound(by[way, kept]) for kept in shares)] for way in ways],
        right=1,
    )


def _bound(row: dict[str, Any]) -> str:
    if row["forgetting"] is None:
        return "-"
    return ("" if row["between_settings"] else "≤ ") + number(row["forgetting"])


def print_plan(plan: dict[str, Any]) -> None:
    """The settings and what became of their runs."""
    print_table(
        f"{plan['settings']} settings with {len(plan['seeds'])} seeds: {plan['runs']} runs",
        ["way", "runs"],
        [[_named(row), ", ".join(f"{row[state]} {state}" for state in STATES if row[state])] for row in plan["rows"]],
    )
    if plan["to_be_suggested"]:
        console.print(f"{plan['to_be_suggested']} more settings will be suggested by what is found", highlight=False)
    left = plan["runs"] - sum(row["done"] + row["failed"] for row in plan["rows"])
    if left and plan["seconds_per_run"] is not None:
        minutes = left * plan["seconds_per_run"] / 60
        console.print(f"{left} runs left, about {minutes:.0f} min one at a time", highlight=False)
