"""The plan of an anchor as tables: what each layer takes and how it is kept, and what other choices would take."""

from dataclasses import asdict
from typing import Any

from rich.console import Console

from holdfast.cli.output import console, errors, print_table, say
from holdfast.memory import text_of

SIZES = ("measured", "used", "stored", "stored_bfloat16")


def show(plan: Any) -> None:
    """The plan's table on standard error, before time is spent."""
    from holdfast.plan import table

    _print(table(plan), errors)


def print_plan(plan: Any, everything: list[Any]) -> None:
    """The plan, and every other choice for the same layers."""
    from holdfast.plan import table

    _print(table(plan), console)
    print_table(
        "Other choices for these layers",
        ["curvature", "sides", "measuring", "finished", "file", "file, bfloat16"],
        [
            [one["kind"], one["storage"] or "-", *(_text(one["bytes"][name]) for name in SIZES)]
            for one in map(_choice, everything)
        ],
        right=2,
    )


def as_data(plan: Any, everything: list[Any]) -> dict[str, Any]:
    """The same as JSON; every size in bytes."""
    from holdfast.plan import table

    return asdict(table(plan)) | {"choices": [_choice(one) for one in everything]}


def _choice(one: Any) -> dict[str, Any]:
    """A choice as data; no size in bfloat16 where it would not stay positive."""
    from holdfast import catalogue

    data = asdict(one)
    if not catalogue.curvature(one.kind).rounds:
        data["bytes"]["stored_bfloat16"] = data["bytes"]["used_bfloat16"] = None
    return data


def _text(size: int | None) -> str:
    return "-" if size is None else text_of(size)


def _print(table: Any, where: Console) -> None:
    budget = "" if table.budget is None else f", of {text_of(table.budget)}"
    print_table(
        f"Plan: {table.kind}, {text_of(max(table.total.measured, table.total.used))} in memory{budget}",
        ["layers", "each", "inputs", "gradients", "measuring", "finished", "file"],
        [
            [
                row.layers,
                f"{row.out} x {row.inn}",
                "shared" if row.shares else row.inputs or "-",
                row.gradients or "-",
                *map(text_of, (row.bytes.measured, row.bytes.used, row.bytes.stored)),
            ]
            for row in table.rows
        ]
        + [["all", "", "", "", *map(text_of, (table.total.measured, table.total.used, table.total.stored))]],
        right=4,
        where=where,
    )
    for note in table.notes:
        say(note, strong="note: ")
