"""What the measured sparsity says: a paragraph, tables and panels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from holdfast.analysis.concentration import NORM, SHARE, Concentration
from holdfast.analysis.leaving import Finding, Table
from holdfast.analysis.nulls import NULLS, smallest_share
from holdfast.analysis.persistence import chance
from holdfast.analysis.sparsity import BODY, Sparsity
from holdfast.analysis.sparsity_panels import CURVE, panels

if TYPE_CHECKING:
    from holdfast.analysis.sparsity_study import Measured


def finding(measured: "Measured", settings: dict[str, Any]) -> Finding:
    """The measurements as files and words."""
    return Finding(
        name="sparsity",
        title="How sparse is the gradient?",
        question="Do 1 % of the entries carry 99 % of the gradient's norm, and do they stay the same?",
        words=" ".join(sentences(measured)),
        settings=settings,
        figures=figures(measured),
        panels=panels(measured),
        tables=[_table(measured)],
        warnings=_warnings(measured),
    )


def sentences(measured: "Measured") -> list[str]:
    """The paragraph."""
    start = measured.conditions["pre-trained"]
    share, pooled = start.by_tensor(SHARE, *BODY), start.body
    noise = ", ".join(f"{_percent(null(SHARE))} for {name} noise" for name, null in NULLS.items())
    holds = share.low >= NORM
    said = [
        f"Over {start.examples} examples, the largest 1 % of each tensor's entries carry {_percent(share.middle)} of "
        f"the gradient's norm, which is {_percent(share.middle**2)} of its energy (the norm squared); of the norm it "
        f"would be {noise}. Sought among all tensors at once they carry {_percent(pooled.norm(SHARE).middle)} of it.",
        f"The claim that 1 % of the entries carry 99 % of the norm {'holds' if holds else 'does not hold'} here: "
        f"99 % of the norm takes {_percent(pooled.smallest_share().middle)} of the entries, where Gaussian noise "
        f"takes {_percent(smallest_share(NULLS['Gaussian'], NORM))}.",
    ]
    said += _averaging(measured.by_examples["pre-trained"])
    others = {
        name: one.by_tensor(SHARE, *BODY).middle for name, one in measured.conditions.items() if one is not start
    }
    said += [f"{_NAMES[name]}, the same 1 % carry {_percent(value)} of the norm." for name, value in others.items()]
    return said + _persistence(measured)


_NAMES = {"random": "In the same model with random weights", "tuned": "With the adapter merged into the weights"}


def _averaging(found: Sequence[Sparsity]) -> list[str]:
    if len(found) < 2:
        return []
    shares = ", ".join(f"{_percent(one.by_tensor(SHARE, *BODY).middle)} over {one.examples}" for one in found)
    return [f"By the number of examples: {shares}."]


def _persistence(measured: "Measured") -> list[str]:
    other, task = measured.overlaps["other examples"], measured.overlaps["the source"]
    said = [
        f"The entries that are largest on one set of examples hold {_percent(other.recall)} of the norm on another of "
        f"the same task (at most {_percent(other.own)} could be held; Jaccard {other.jaccard:.2f}, at random "
        f"{chance(SHARE).jaccard:.3f}), and {_percent(task.recall)} on the source (Jaccard {task.jaccard:.2f})."
    ]
    parts = []
    for name, moments in measured.training.items():
        (_, first), (_, last) = moments[0], moments[-1]
        parts.append(
            f"{_percent(last.recall)} on {name} ({_percent(first.recall)} before; Jaccard {last.jaccard:.2f})"
        )
    if parts:
        steps = max(step for moments in measured.training.values() for step, _ in moments)
        said.append(f"After {steps} steps of training they hold {' and '.join(parts)}.")
    return said


def figures(measured: "Measured") -> dict[str, Any]:
    """For the JSON file."""
    return {
        "nulls": {
            name: {"norm": null(SHARE), "energy": null(SHARE) ** 2, "q99": smallest_share(null, NORM)}
            for name, null in NULLS.items()
        },
        "conditions": {
            name: {
                "by_examples": [_summary(one) for one in found],
                "tensors": {t: {"kind": found[-1].kinds[t], **_of(c)} for t, c in found[-1].tensors.items()},
                "unreached": found[-1].unreached,
                "curve": {"share": CURVE, "norm": [found[-1].body.norm(q).middle for q in CURVE]},
            }
            for name, found in measured.by_examples.items()
        },
        "persistence": {
            "overlaps": {name: vars(one) for name, one in measured.overlaps.items()},
            "training": {
                name: [{"step": step, **vars(one)} for step, one in moments]
                for name, moments in measured.training.items()
            },
        },
    }


def _summary(one: Sparsity) -> dict[str, Any]:
    embeddings = one.together("embedding")
    by_tensor = one.by_tensor(SHARE, *BODY)
    return {
        "examples": one.examples,
        "items": one.items,
        "norm_by_tensor": by_tensor.middle,
        "energy_by_tensor": by_tensor.middle**2,
        "all_but_embeddings": _of(one.body),
        "embeddings": None if embeddings is None else _of(embeddings),
    }


def _of(one: Concentration) -> dict[str, Any]:
    norm, smallest = one.norm(SHARE), one.smallest_share()
    logs, shares = one.histogram()
    return {
        "entries": one.entries,
        "zeros": one.zeros,
        "norm": norm.middle,
        "norm_between": [norm.low, norm.high],
        "energy": one.energy(SHARE).middle,
        "q99": smallest.middle,
        "q99_between": [smallest.low, smallest.high],
        "gini": one.gini,
        "hoyer": one.hoyer,
        "participation": one.participation,
        "kurtosis": one.kurtosis,
        "histogram": {"log10": logs, "share": shares},
    }


def _table(measured: "Measured") -> Table:
    header = ["condition", "examples", "norm in 1 %", "energy in 1 %", "q99", "Gini", "Hoyer", "participation"]
    rows = []
    for name, found in measured.by_examples.items():
        for one in found:
            body, share = one.body, one.by_tensor(SHARE, *BODY).middle
            rows.append([name, str(one.examples), _percent(share), _percent(share**2),
                         _percent(body.smallest_share().middle), f"{body.gini:.2f}", f"{body.hoyer:.2f}",
                         _percent(body.participation)])  # fmt: skip
    return Table("Gradients, embeddings left out", header, rows)


def _warnings(measured: "Measured") -> list[str]:
    missing = measured.conditions["pre-trained"].unreached
    if not missing:
        return []
    return [f"{len(missing)} tensors get no gradient and are left out: {', '.join(missing[:3])}"]


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.095 else f"{value:.2g} %"
