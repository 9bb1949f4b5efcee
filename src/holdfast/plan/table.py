"""Plans as rows to print: layers of one form together, and what each structure would take."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from holdfast import catalogue
from holdfast.curvature.statistic import Reading
from holdfast.factors.amount import Amount
from holdfast.plan.choosing import make
from holdfast.plan.plan import FLOAT, Plan, suits, uncoupled
from holdfast.plan.shapes import Shapes

STORAGES = ("full", "blocks:2048", "blocks:1024", "low-rank:512", "low-rank:256", "low-rank:64", "diagonal")
BFLOAT16 = 2  # bytes of a number
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # between dots


@dataclass(frozen=True)
class Bytes:
    """What something takes.

    Files in bfloat16 keep the diagonals of matrices in float32, and every file has a header: both are left out.

    Attributes:
        measured: in memory while it is measured.
        used: in memory when it is finished.
        used_bfloat16: in memory, if every number were bfloat16.
        stored: in a file of float32: triangles, what layers share once.
        stored_bfloat16: in a file of bfloat16.
    """

    measured: int
    used: int
    used_bfloat16: int
    stored: int
    stored_bfloat16: int

    @classmethod
    def of(cls, amount: Amount, each: int = FLOAT) -> "Bytes":
        """Bytes of so many numbers, `each` bytes long in memory."""
        return cls(
            amount.measured * each,
            amount.used * each,
            amount.used * BFLOAT16,
            amount.stored * each,
            amount.stored * BFLOAT16,
        )


@dataclass(frozen=True)
class Row:
    """Layers of one form: "model.layers.0-27.mlp.down_proj", each (out, in), with their storages and bytes together.

    `shares`: what is summed over their inputs is counted with an earlier layer. Storages are empty for kinds without
    sides.
    """

    layers: str
    count: int
    out: int
    inn: int
    inputs: str
    gradients: str
    shares: bool
    bytes: Bytes


@dataclass(frozen=True)
class Table:
    """A plan's rows and what they come to."""

    kind: str
    rows: list[Row]
    total: Bytes
    budget: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """One structure for all layers: a kind of curvature, with the storage of its sides where it has any."""

    kind: str
    storage: str
    bytes: Bytes


def table(plan: Plan) -> Table:
    """The plan's layers, those of one form in one row, in the model's order."""
    layers = plan.layers
    forms: dict[tuple[str, int, int, str, str, bool], list[str]] = {}
    for name, size in plan.sizes.items():
        inputs, gradients = (size.inputs.name, size.gradients.name) if plan.sided else ("", "")
        shares = plan.leaders.get(name, name) != name
        form = (NUMBER.sub("*", name), size.out, size.inn, inputs, gradients, shares)
        forms.setdefault(form, []).append(name)
    rows = []
    for (_, out, inn, inputs, gradients, shares), names in forms.items():
        together = Bytes.of(sum((layers[name] for name in names), Amount()), plan.each)
        rows.append(Row(spanned(names), len(names), out, inn, inputs, gradients, shares, together))
    return Table(plan.kind.kind, rows, Bytes.of(plan.total, plan.each), plan.budget, plan.notes)


def choices(shapes: Shapes, reading: Reading | None = None) -> list[Choice]:
    """What every kind of curvature takes, and those with two sides in every storage that makes a difference.

    Each is read as suits it, per token or per sequence, whatever `reading` says of that.
    """
    found = []
    for name in catalogue.names("curvature"):
        kind = catalogue.curvature(name)
        suited = replace(reading or Reading(), per=kind.per)
        full = make(shapes, kind, suited, storage=STORAGES[0])
        found.append(Choice(name, STORAGES[0] if full.sided else "", Bytes.of(full.total)))
        smaller = {s: make(shapes, kind, suited, storage=s) for s in STORAGES[1:] if suits(full, s)}
        for storage, plan in smaller.items():
            least = smaller[STORAGES[-1]]
            disguised = plan.total == full.total or (plan is not least and plan.total.used <= least.total.used)
            if not (disguised or uncoupled(plan)):
                found.append(Choice(name, storage, Bytes.of(plan.total)))
    return found


def spanned(names: Iterable[str]) -> str:
    """Names that differ in numbers as one: "layers.0-3,6.mlp"."""
    split = [re.split(r"(\d+)", name) if NUMBER.search(name) else [name] for name in names]
    return "".join(_span(list(dict.fromkeys(parts))) for parts in zip(*split, strict=True))


def _span(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    numbers = sorted(map(int, parts))
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
