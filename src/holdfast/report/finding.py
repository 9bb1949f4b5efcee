"""What the rows say, in sentences: never more than they say."""

from collections.abc import Sequence

from holdfast.report.comparison import NOISE, Setting, Span, least_forgetting
from holdfast.report.words import count_of, decimals, method_name, middle, percent, setting_name, spread

KEEP = 0.90  # the share of plain gain at which forgetting is compared


def finding(settings: Sequence[Setting], item: str) -> str:
    """The one sentence that stands on top of the page."""
    plain = next((s for s in settings if s.is_plain), None)
    held = [s for s in settings if not s.is_plain and (plain is None or s.method == plain.method)]
    if plain is None or not held:
        return _alone(settings[0], item) if len(settings) == 1 else _without_comparison(settings, held)
    name = method_name(plain.method)
    if plain.gain is None or plain.gain.median < NOISE:
        return f"Plain {name} learned nothing here, so there is no gain against which forgetting could be weighed."
    if plain.forgetting is None:
        return "How much was forgotten is unknown: no source loss was measured for plain fine-tuning."
    if plain.forgetting.median < NOISE:
        return f"Plain {name} forgot nothing here ({_signed(plain.forgetting)} nats per {item}): nothing to hold."
    best = least_forgetting(held, KEEP)
    return _best(best, name) if best else _nearest(held, name)


def _best(best: Setting, name: str) -> str:
    kept, share = middle(best.kept), middle(best.share)
    assert kept is not None and share is not None
    if share >= 1:
        return f"No penalty forgot less than plain {name} while keeping {percent(KEEP)} of its gain."
    amount = f"at {percent(share)} of its forgetting" if share > 0 else "without forgetting"
    return f"{setting_name(best)}, kept {percent(kept)} of plain {name}’s gain {amount}."


def _nearest(held: Sequence[Setting], name: str) -> str:
    known = [s for s in held if s.kept and s.share]
    if not known:
        return f"No penalty's run can be held against plain {name}'s: their losses are missing."
    most = max(known, key=lambda s: middle(s.kept) or 0.0)
    return (
        f"No penalty kept {percent(KEEP)} of plain {name}’s gain; {setting_name(most)}, came nearest with "
        f"{percent(middle(most.kept))} at {percent(middle(most.share))} of its forgetting."
    )


def _alone(setting: Setting, item: str) -> str:
    """Of a single setting: what it learned and what it lost."""
    learned = _learned(setting, item)
    if setting.forgetting is None:
        return f"{learned}; what it forgot was not measured."
    return f"{learned}; {_lost(setting.forgetting, item)}."


def _learned(setting: Setting, item: str) -> str:
    if setting.gain is None:
        return f"{setting_name(setting)}: the target loss was not measured"
    return f"The target loss {_moved(-setting.gain.median)} {decimals(abs(setting.gain.median))} nats per {item}"


def _lost(forgetting: Span, item: str) -> str:
    if abs(forgetting.median) < NOISE:
        return f"the source loss stayed where it was (within {decimals(NOISE)} nats per {item})"
    return f"the source loss {_moved(forgetting.median)} {decimals(abs(forgetting.median))} nats per {item}"


def _moved(change: float) -> str:
    return "rose by" if change > 0 else "fell by"


def _signed(found: Span) -> str:
    return ("+" if found.median > 0 else "") + decimals(found.median, 4)


def _without_comparison(settings: Sequence[Setting], held: Sequence[Setting]) -> str:
    missing = "a run without a penalty" if held else "a run with a penalty"
    return f"{count_of(len(settings), 'setting')}, and no comparison: it takes {missing} with the same method."


def support(settings: Sequence[Setting], item: str) -> list[str]:
    """The sentences under the finding: what plain fine-tuning did, the spread, and how the setting was chosen."""
    plain = next((s for s in settings if s.is_plain), None)
    said = []
    if plain is not None and plain.gain and plain.forgetting:
        said.append(
            f"With nothing to hold it, {method_name(plain.method)} moved the target loss from "
            f"{_path(plain, 'target')} and the source loss from {_path(plain, 'source')} nats per {item}."
        )
    held = [s for s in settings if not s.is_plain and plain is not None and s.method == plain.method]
    best = least_forgetting(held, KEEP)
    if best is not None and best.share is not None and best.share.median < 1:
        if ranges := spread(best.share):
            said.append(f"Its forgetting ran from {ranges}.")
        said.append(_choice(held))
    if settings and max(len(s.rows) for s in settings) == 1 and len(settings) > 1:
        said.append("One seed: how far chance moves these figures is not known.")
    return said


def _choice(held: Sequence[Setting]) -> str:
    return (
        f"It is the one that forgot least among the {count_of(len(held), 'setting')} with a penalty, "
        f"of those that kept {percent(KEEP)} of the gain; the choice was made on the figures shown here."
        if len(held) > 1
        else "It is the only setting with a penalty."
    )


def _path(setting: Setting, side: str) -> str:
    before, after = setting.span(f"{side}_before"), setting.span(f"{side}_after")
    return f"{decimals(middle(before))} to {decimals(middle(after))}"


def forecast_sentence(settings: Sequence[Setting]) -> str:
    """How the forecasts compare with what happened; empty where nothing can be compared."""
    ratios = []
    for setting in settings:
        predicted = middle(setting.span("predicted_forgetting"))
        real = middle(setting.forgetting)
        if predicted is not None and real is not None and real >= NOISE:
            ratios.append(predicted / real)
    if not ratios:
        return ""
    low, high = min(ratios), max(ratios)
    if len(ratios) == 1:
        return f"The forecast was {decimals(low, 2)} times the real forgetting."
    return f"Forecasts were {decimals(low, 2)} to {decimals(high, 2)} times the real forgetting."
