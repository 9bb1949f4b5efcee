"""The plan of an anchor as tables: what each layer takes and how it is kept, and what other choices would take."""

from dataclasses import asdict
from itertools import takewhile
from typing import Any

from rich.console import Console

from holdfast.cli.output import console, errors, print_table, say
from holdfast.memory import text_of

SIZES = ("measured", "used", "stored", "stored_bfloat16")


def show(plan: Any, storage: str) -> None:
    """The plan's table on standard error, before time is spent; files in that storage."""
    from holdfast.plan import table

    _print(table(plan), storage, errors)


def print_plan(plan: Any, storage: str, everything: list[Any]) -> None:
    """The plan, and every other choice for the same layers."""
    from holdfast.plan import table

    _print(table(plan), storage, console)
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


def _print(table: Any, storage: str, where: Console) -> None:
    budget = "" if table.budget is None else f", of {text_of(table.budget)}"
    stem = _stem([row.layers for row in table.rows])
    below = f"; layers below {stem.removesuffix('.')}" if stem else ""
    lines = [
        {
            "layers": row.layers.removeprefix(stem),
            "each": f"{row.out} x {row.inn}",
            "inputs": "shared" if row.shares else row.inputs or "-",
            "gradients": row.gradients or "-",
            **_sizes(row.bytes, table.total, storage),
        }
        for row in table.rows
    ]
    header = list(lines[0])
    print_table(
        f"Plan: {table.kind}, {text_of(max(table.total.measured, table.total.used))} in memory{budget}{below}",
        header,
        [
            *(list(line.values()) for line in lines),
            ["all", "", "", "", *_sizes(table.total, table.total, storage).values()],
        ],
        right=4,
        where=where,
    )
    for note in table.notes:
        say(note, strong="note: ")


def _stem(names: list[str]) -> str:
    """What all names begin with, up to a dot: said once, since narrow terminals would break every name."""
    split = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _sizes(bytes_: Any, total: Any, storage: str) -> dict[str, str]:
    """Measuring and finished apart only where they differ in the whole plan."""
    low = storage == "bfloat16"
    file = {"file, bfloat16" if low else "file": text_of(bytes_.stored_bfloat16 if low else bytes_.stored)}
    if total.measured == total.used:
        return {"memory": text_of(bytes_.used)} | file
    return {"measuring": text_of(bytes_.measured), "finished": text_of(bytes_.used)} | file
