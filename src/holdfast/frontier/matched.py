"""What each way forgets at equal learning, and what it learns at equal forgetting, over seeds."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.frontier.intervals import interval
from holdfast.frontier.matching import Point, at_forgetting, at_gain
from holdfast.frontier.points import Setting, at_seed, seeds_of

GAINS = (0.98, 0.95, 0.90, 0.80)  # of plain fine-tuning's
FORGETTINGS = (0.50, 0.25, 0.10, 0.05)  # of plain fine-tuning's
Read = Callable[[Iterable[Point], float], tuple[float, bool] | None]


@dataclass(frozen=True)
class Compared:
    """The ways of a study, and what they are held against.

    Runs of one seed share their start and the order of the data: a level is a share of what plain fine-tuning did with
    the same seed, or did on average where that seed has no plain run.

    Args:
        ways: the settings of each, plain's own among them.
        plain: plain fine-tuning's setting; without it only absolute levels are compared.
        limits: the ways that end in the plain run as their strength goes to zero: it is on their curves.
        before: side -> its loss before training.
    """

    ways: Mapping[str, Sequence[Setting]]
    plain: Sequence[Setting]
    limits: Collection[str]
    before: Mapping[str, float | None]

    def learning(self) -> list[dict[str, Any]]:
        """Forgetting at equal target loss: for shares of plain fine-tuning's gain, every way's by interpolation."""
        rows: list[dict[str, Any]] = []
        for share in GAINS:
            level, before = self._level(share, 0), self.before["target"]
            if level is not None:
                place = {"gain_kept": share, "target_loss": None if before is None else before - level}
                read = self._lines(at_gain, "forgetting", partial(self._level, share, 0))
                rows += [{**place, **line} for line in sorted(read, key=lambda line: _rank(line["forgetting"]))]
        return rows

    def forgetting(self, accepted: Iterable[float] = ()) -> list[dict[str, Any]]:
        """Gain at equal source loss: for shares of plain fine-tuning's forgetting, and amounts in nats per item."""
        whole = self._level(1.0, 1)
        levels: list[tuple[float, float | None, Callable[[int], float | None]]] = []
        if whole is not None:
            levels += [(share * whole, share, partial(self._level, share, 1)) for share in FORGETTINGS]
        for amount in accepted:
            levels.append((amount, amount / whole if whole else None, partial(_same, amount)))
        before, rows = self.before["source"], []
        for level, share, at in sorted(levels, key=lambda each: -each[0]):
            place = {"forgetting": level, "of_plain": share, "source_loss": None if before is None else before + level}
            read = self._lines(at_forgetting, "gain", at)
            rows += [{**place, **line} for line in sorted(read, key=lambda line: _rank(line["gain"], -1.0))]
        return rows

    def _level(self, share: float, place: int, seed: int | None = None) -> float | None:
        """A share of plain fine-tuning's gain (place 0) or forgetting (1); None where there is none to share."""
        found = {s: point[place] for setting in self.plain for s, point in setting.points.items()}
        if not found:
            return None
        whole = interval(found.values()).mean
        own = whole if seed is None else found.get(seed, whole)
        return share * own if own > 0 else None

    def _lines(self, read: Read, name: str, at: Callable[[int], float | None]) -> list[dict[str, Any]]:
        """Every way's figure at a level; None where a seed does not reach it."""
        lines = []
        for way, members in self.ways.items():
            ends = self.plain if way in self.limits else []
            seeds = seeds_of(members)
            found = [_read(read, at_seed([*members, *ends], seed), at(seed)) for seed in seeds]
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
        return lines


def _same(level: float, seed: int) -> float:
    return level


def _read(read: Read, points: Iterable[Point], level: float | None) -> tuple[float, bool] | None:
    return None if level is None else read(points, level)


def _rank(value: float | None, sign: float = 1.0) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else sign * value
