"""A calibration in figures, pictures and words: how far each anchor's forecast can be believed."""

from collections.abc import Mapping
from typing import Any

from holdfast.analysis.calibration import Calibration
from holdfast.analysis.figure import Level, Line, Mark, Panel, color
from holdfast.analysis.forecasts import SHARES, TOLD, Fit
from holdfast.analysis.leaving import Finding, Table

ALIKE = 0.01  # slopes that are said as one


def finding(found: Calibration, settings: Mapping[str, Any], warnings: list[str]) -> Finding:
    """What `leave` takes.

    Args:
        found: the calibration.
        settings: what it is of: model, data, path and anchors.
        warnings: of measuring.
    """
    fits = found.fits()
    return Finding(
        name="calibration",
        title=f"Forecast and measured forgetting of {settings.get('model', 'a model')}",
        question=f"Along the way that {settings.get('path', 'an adapter')} took the weights, how much does each "
        "anchor say that is forgotten, and how much is?",
        words=words(found, fits),
        settings=dict(settings),
        figures={
            "along": found.along,
            "places": found.places,
            "source_before": found.loss,
            "items": found.items,
            "measured": found.measured,
            "errors": found.errors,
            "anchors": {name: {"forecast": found.forecasts[name], **one.json()} for name, one in fits.items()},
        },
        panels=panels(found, fits),
        tables=tables(found, fits),
        warnings=warnings,
    )


def words(found: Calibration, fits: Mapping[str, Fit]) -> str:
    """The paragraph; what it says of one place is of the finished adapter, or else of the last step."""
    here = found.places.index(1.0) if 1.0 in found.places else len(found.places) - 1
    rise, error = found.measured[here], found.errors[here]
    place = f"{found.along} = {found.places[here]:g}"
    went = "risen" if rise >= 0 else "fallen"
    said = [
        f"At {place} the source loss has {went} by {abs(rise):.3g} ± {error:.1g} nats per item (from "
        f"{found.loss:.3f}, on {found.items:,} items that no anchor was measured on)."
    ]
    if abs(rise) <= TOLD * error:
        return (
            f"{said[0]} That is within two standard errors of nothing: there is no forgetting to hold a forecast to."
        )
    if rise < 0:
        return (
            f"{said[0]} Nothing is forgotten there: the model was not at the least of its source loss, as forecasts "
            "take for granted (they are never below 0), so the way could lead down. No ratio can be given."
        )
    known = {name: ratio for name, one in fits.items() if (ratio := one.ratios[here]) is not None}
    for name, ratio in known.items():
        forecast = f"The forecast of {name} is {found.forecasts[name][here]:.3g} ({ratio:.2f} of it)"
        said.append(f"{forecast}, {_course(fits[name])}.")
    said.append(_growth(fits))
    if len(known) > 1:
        closest = min(known, key=lambda name: abs(known[name] - 1))
        low = all(ratio < 1 for ratio in known.values())
        said.append(f"{'All forecasts are low; the' if low else 'The'} closest there is {closest}'s.")
    return " ".join(filter(None, said))


def _course(one: Fit) -> str:
    """Where it first is off by how much."""
    at = {f"{share:.0%}": one.passes[f"{share:.0%}"] for share in SHARES}
    parts = [f"by more than {share} {'nowhere' if p is None else f'first at {p:g}'}" for share, p in at.items()]
    return f"off {' and '.join(parts)}"


def _growth(fits: Mapping[str, Fit]) -> str:
    """How the measured rise grows against the forecasts; along a scaled shift all of them grow alike."""
    slopes = {name: one.slope for name, one in fits.items() if one.slope is not None}
    if not slopes:
        return ""
    if max(slopes.values()) - min(slopes.values()) < ALIKE:
        one = next(iter(slopes.values()))
        return f"The measured rise grows as the forecasts' power {one:.2f}: 1 is a true quadratic."
    each = ", ".join(f"{power:.2f} ({name})" for name, power in slopes.items())
    return f"The measured rise grows as the forecast's power {each}: 1 is a true shape."


def tables(found: Calibration, fits: Mapping[str, Fit]) -> list[Table]:
    """Nats at each step, and each anchor's figures."""
    rows = [
        [
            f"{at:g}",
            f"{found.measured[i]:.4f} ± {found.errors[i]:.4f}",
            *(f"{found.forecasts[name][i]:.4f} ({_number(fits[name].ratios[i])})" for name in fits),
        ]
        for i, at in enumerate(found.places)
    ]
    figures = [
        [
            name,
            *(_number(one.passes[f"{share:.0%}"], "g") for share in SHARES),
            _number(one.slope),
            _number(one.rank_correlation),
        ]
        for name, one in fits.items()
    ]
    header = ["anchor", *(f"{share:.0%} off at" for share in SHARES), "slope", "rank corr."]
    return [
        Table(
            "Nats per item: forecasts, and their ratio to what was measured", [found.along, "measured", *fits], rows
        ),
        Table("How each forecast does along the path", header, figures),
    ]


def _number(value: float | None, how: str = ".2f") -> str:
    return "-" if value is None else format(value, how)


def panels(found: Calibration, fits: Mapping[str, Fit]) -> list[Panel]:
    """Rises along the path, forecast against truth, and the ratio."""
    colors = {name: color(index) for index, name in enumerate(fits)}
    low = [rise - TOLD * error for rise, error in zip(found.measured, found.errors, strict=True)]
    high = [rise + TOLD * error for rise, error in zip(found.measured, found.errors, strict=True)]
    rises: list[Mark] = [
        Line("measured", [0, *found.places], [0, *found.measured], low=[0, *low], high=[0, *high], points=True),
        *(
            Line(name, [0, *found.places], [0, *found.forecasts[name]], colors[name], "dash", points=True)
            for name in fits
        ),
    ]
    told = [i for i, one in enumerate(found.measured) if one > TOLD * found.errors[i]]
    true = [found.measured[i] for i in told]
    against: list[Mark] = [Line("exact", true, true, dash="dot")]
    ratios: list[Mark] = [Level("exact", 1.0)]
    for name, one in fits.items():
        against.append(Line(name, true, [found.forecasts[name][i] for i in told], colors[name], points=True))
        ratios.append(Line(name, found.places, one.ratios, colors[name], points=True))
    unit = "nats per item"
    first = Panel(
        "Rise of the source loss",
        found.along,
        unit,
        rises,
        "The band is two standard errors to either side.",
        wide=True,
    )
    if not told:
        return [first]
    names = f"measured, {unit}", f"forecast, {unit}"
    left_out = "Rises within two standard errors of nothing are left out."
    both = Panel("Forecast against truth", *names, against, left_out, x_scale="log", y_scale="log")
    said = "At 1 it is exact; where it is level, right but for its size."
    return [first, both, Panel("Forecast over measured", found.along, "ratio", ratios, said)]
