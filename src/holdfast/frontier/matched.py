"""What each way forgets at equal learning, and what it learns at equal forgetting, over seeds."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from holdfast.frontier.intervals import interval
from holdfast.frontier.matching import Point, at_forgetting, at_gain
from holdfast.frontier.points import Setting, at_seed, seeds_of

GAINS = (0.98, 0.95, 0.90, 0.80)  # of plain fine-tuning's
FORGETTINGS = (0.50, 0.25, 0.10, 0.05)  # of plain fine-tuning's
Read = Callable[[Iterable[Point], float], tuple[float, bool] | None]


def learning(
    ways: Mapping[str, Sequence[Setting]], plain: Sequence[Setting], limits: Collection[str], before: float | None
) -> list[dict[str, Any]]:
    """Forgetting at equal target loss: for each share of plain fine-tuning's gain, every way's by interpolation.

    Args:
        ways: the settings of each, plain's own among them.
        plain: plain fine-tuning's setting, the measure; without it the table is empty.
        limits: the ways that end in the plain run as their strength goes to zero: it is on their curves.
        before: the target loss before training, for the target loss at which is compared.
    """
    whole = _mean(plain, 0)
    if whole is None or whole <= 0:
        return []
    rows = []
    for share in GAINS:
        level = share * whole
        place = {"gain_kept": share, "target_loss": None if before is None else before - level}
        rows += [{**place, **line} for line in _read(ways, plain, limits, level, at_gain, "forgetting", rising=True)]
    return rows


def forgetting(
    ways: Mapping[str, Sequence[Setting]],
    plain: Sequence[Setting],
    limits: Collection[str],
    before: float | None,
    accepted: Iterable[float] = (),
) -> list[dict[str, Any]]:
    """Gain at equal forgetting: for shares of plain fine-tuning's and what else is accepted, in nats per item.

    Args:
        ways: see `learning`.
        plain: see `learning`.
        limits: see `learning`.
        before: the source loss before training, for the source loss at which is compared.
        accepted: further amounts of forgetting, in nats per item.
    """
    whole = _mean(plain, 1)
    levels = [share * whole for share in FORGETTINGS] if whole is not None and whole > 0 else []
    rows = []
    for level in sorted({*levels, *accepted}, reverse=True):
        share = level / whole if whole is not None and whole > 0 else None
        place = {
            "forgetting": level,
            "of_plain": share,
            "source_loss": None if before is None else before + level,
        }
        rows += [{**place, **line} for line in _read(ways, plain, limits, level, at_forgetting, "gain", rising=False)]
    return rows


def _mean(plain: Sequence[Setting], place: int) -> float | None:
    found = [point[place] for setting in plain for point in setting.points.values()]
    return interval(found).mean if found else None


def _read(
    ways: Mapping[str, Sequence[Setting]],
    plain: Sequence[Setting],
    limits: Collection[str],
    level: float,
    read: Read,
    name: str,
    *,
    rising: bool,
) -> list[dict[str, Any]]:
    """Every way's figure at one level, the best first; None where a seed does not reach it."""
    lines = []
    for way, members in ways.items():
        seeds = seeds_of(members)
        curves = [at_seed([*members, *(plain if way in limits else [])], seed) for seed in seeds]
        found = [read(points, level) for points in curves]
        reached = [each for each in found if each is not None]
        whole = interval(value for value, _ in reached) if reached and len(reached) == len(found) else None
        lines.append(
            {
                "way": way,
                **({name: None, f"{name}_low": None, f"{name}_high": None} if whole is None else whole.told(name)),
                "seeds": len(seeds),
                "reached": len(reached),
                "between_settings": whole is not None and all(inside for _, inside in reached),
            }
        )
    return sorted(lines, key=lambda line: _rank(line[name], rising))


def _rank(value: float | None, rising: bool) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else value if rising else -value
