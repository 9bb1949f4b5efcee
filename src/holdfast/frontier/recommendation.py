"""One sentence on what to take: never more than the runs say."""

from collections.abc import Sequence

from holdfast.frontier.intervals import Interval, interval
from holdfast.frontier.pareto import mean_point
from holdfast.frontier.points import Setting
from holdfast.report.comparison import NOISE

RIVALS = 3  # named at most


def recommend(
    found: Sequence[Setting], plain: Sequence[Setting], *, keep: float, accept: float | None, item: str = "item"
) -> str:
    """What to take for an accepted forgetting, or else for a wanted share of plain fine-tuning's gain.

    Only settings that were run are named, by their means over seeds; those of other ways that the seeds do not tell
    apart from the best (a paired 95 % interval that holds zero) are named beside it.

    Args:
        found: every setting, stopped runs included.
        plain: plain fine-tuning's.
        keep: the wanted share of its gain.
        accept: the accepted forgetting, in nats per item; None asks by `keep`.
        item: what is scored.
    """
    if not found:
        return "No run has finished with both losses measured: nothing can be recommended."
    if accept is not None:
        return _by_forgetting(found, accept, item)
    if not plain:
        return (
            "Plain fine-tuning has not finished, so there is no gain to keep a share of; name an accepted forgetting."
        )
    whole, lost = mean_point(plain[0])
    if whole.mean < NOISE:
        return f"Plain fine-tuning learned {_nats(whole, item)}: there is no gain to weigh forgetting against."
    if lost.mean < NOISE:
        return f"Plain fine-tuning forgot {_nats(lost, item)}: nothing needs holding."
    return _by_gain(found, plain[0], keep, item)


def _by_gain(found: Sequence[Setting], plain: Setting, keep: float, item: str) -> str:
    whole, lost = (each.mean for each in mean_point(plain))
    able = [s for s in found if mean_point(s)[0].mean >= keep * whole]
    best = min(able, key=lambda s: mean_point(s)[1].mean)
    gain, forgot = mean_point(best)
    aim = f"To keep {_share(keep)} of plain fine-tuning's gain"
    if best is plain:
        return f"{aim}, nothing forgot less than plain fine-tuning itself: {_nats(forgot, item)}{_seeds(forgot)}."
    said = (
        f"{aim}, take {_named(best)}: it kept {_share(gain.mean / whole)} and forgot {_nats(forgot, item)}, "
        f"where plain fine-tuning forgot {lost:.3g}"
    )
    if gain.low is not None and gain.low < keep * whole <= gain.mean:
        said += f"; over seeds its gain may be as low as {_share(max(gain.low, 0) / whole)}"
    return f"{said}{_rivals(best, able, 1)}{_seeds(forgot)}."


def _by_forgetting(found: Sequence[Setting], accept: float, item: str) -> str:
    able = [s for s in found if mean_point(s)[1].mean <= accept]
    aim = f"For an accepted forgetting of {accept:.3g} nats per {item}"
    if not able:
        least = min(found, key=lambda s: mean_point(s)[1].mean)
        return (
            f"No setting stayed within {accept:.3g} nats per {item}; {_named(least)} forgot least, "
            f"{_nats(mean_point(least)[1], item)}: try higher strengths."
        )
    best = max(able, key=lambda s: mean_point(s)[0].mean)
    gain, forgot = mean_point(best)
    said = f"{aim}, take {_named(best)}: it learned {_nats(gain, item)} and forgot {_range(forgot)}"
    if forgot.high is not None and forgot.high > accept >= forgot.mean:
        said += f", which over seeds may reach {forgot.high:.3g}"
    return f"{said}{_rivals(best, able, 0)}{_seeds(forgot)}."


def _rivals(best: Setting, able: Sequence[Setting], place: int) -> str:
    """The other ways among the able that the seeds do not tell apart from the best in the point's `place`."""
    rivals: dict[str, tuple[float, Setting]] = {}
    for other in able:
        shared = [seed for seed in best.points if seed in other.points]
        if other.way == best.way or len(shared) < 2:
            continue
        apart = interval(_worse(best, other, seed, place) for seed in shared)
        if not apart.above_zero and (other.way not in rivals or apart.mean < rivals[other.way][0]):
            rivals[other.way] = apart.mean, other
    named = [_named(other) for _, other in sorted(rivals.values(), key=lambda pair: pair[0])[:RIVALS]]
    more = len(rivals) - len(named)
    if not named:
        return ""
    listed = ", ".join(named[:-1]) + (" and " if len(named) > 1 else "") + named[-1] if not more else ", ".join(named)
    return f"; {listed}{f' and {more} more' if more else ''} can't be told apart from it"


def _worse(best: Setting, other: Setting, seed: int, place: int) -> float:
    """How much worse the other is at one seed: less gain (place 0) or more forgetting (place 1)."""
    mine, theirs = best.points[seed][place], other.points[seed][place]
    return theirs - mine if place else mine - theirs


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _named(setting: Setting) -> str:
    return setting.way + (f" ({setting.words})" if setting.words else "")


def _nats(value: Interval, item: str) -> str:
    return f"{_range(value)} nats per {item}"


def _range(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.3g}"
    return f"{value.mean:.3g} (95 % interval {value.low:.3g} to {value.high:.3g})"


def _seeds(value: Interval) -> str:
    return f" (means of {value.seeds} seeds)" if value.seeds > 1 else " (one seed: how far seeds differ is not known)"
