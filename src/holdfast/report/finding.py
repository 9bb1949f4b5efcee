"""What the rows say, in sentences: never more than they say."""

from collections.abc import Sequence

from holdfast.report.budgets import budgeted, excess, figure, kept, measured
from holdfast.report.comparison import NOISE, Setting, least_forgetting
from holdfast.report.words import count_of, decimals, method_name, middle, percent, setting_name

KEEP = 0.90  # the share of plain gain at which forgetting is compared


def finding(settings: Sequence[Setting], item: str) -> str:
    """The one sentence that stands on top of the page, of settings of one family."""
    plain = next((s for s in settings if s.is_plain), None)
    held = [s for s in settings if not s.is_plain]
    if len(settings) == 1:
        return _alone(settings[0], item)
    if plain is None and (said := kept(settings)):
        return said
    if plain is None or not held:
        return f"{count_of(len(settings), 'setting')}, and no comparison: it takes runs with and without a penalty."
    name = method_name(plain.method)
    if plain.gain is None or plain.gain.median < NOISE:
        return f"Plain {name} learned nothing here, so there is no gain against which forgetting could be weighed."
    if plain.forgetting is None:
        return "How much was forgotten is unknown: no source loss was measured for plain fine-tuning."
    if plain.forgetting.median < NOISE:
        return (
            f"Plain {name} forgot nothing here ({_signed(plain.forgetting.median)} nats per {item}): nothing to hold."
        )
    best = least_forgetting(held, KEEP)
    return _best(best, name) if best else _nearest(held, name)


def _best(best: Setting, name: str) -> str:
    kept, share = middle(best.kept), middle(best.share)
    if share is None or share >= 1:
        return f"No penalty forgot less than plain {name} while keeping {percent(KEEP)} of its gain."
    amount = f"at {percent(share)} of its forgetting" if share > 0 else "without forgetting"
    return f"{setting_name(best)} kept {percent(kept)} of plain {name}’s gain {amount}."


def _nearest(held: Sequence[Setting], name: str) -> str:
    known = [s for s in held if s.judged_kept and s.judged_share]
    if not known:
        return f"No run with a penalty can be held against plain {name}: losses are missing."
    most = max(known, key=lambda s: middle(s.judged_kept) or 0.0)
    return (
        f"No penalty kept {percent(KEEP)} of plain {name}’s gain; {setting_name(most)} came nearest with "
        f"{percent(middle(most.judged_kept))} at {percent(middle(most.judged_share))} of its forgetting."
    )


def _alone(setting: Setting, item: str) -> str:
    """Of a single setting: what it learned and what it lost."""
    if setting.gain is None:
        return f"{setting_name(setting)}: the target loss was not measured."
    learned = f"the target loss {_moved(-setting.gain.median)} nats per {item}"
    if setting.forgetting is None:
        lost = "what was forgotten was not measured"
    elif abs(setting.forgetting.median) < NOISE:
        lost = "the source loss stayed where it was"
    else:
        lost = f"the source loss {_moved(setting.forgetting.median)}"
    return f"{setting_name(setting)}: {learned}, {lost}{_within(setting)}."


def _within(setting: Setting) -> str:
    """Whether a run stayed inside its budget; empty without one, or where that was not measured."""
    over = [value for row in setting.rows if (value := excess(row)) is not None]
    if not over:
        return ""
    if len(over) > 1:
        return f", inside the budget in {sum(value <= 0 for value in over)} of {len(over)} runs"
    error = measured(setting.rows[0])[1]
    spread = "" if error is None else f" (standard error {error:.2g})"
    budget = str(budgeted([setting])[0].words)
    return f", {'inside' if over[0] <= 0 else f'{figure(over[0])} over'} the accepted {budget}{spread}"


def _moved(change: float) -> str:
    return f"{'rose' if change > 0 else 'fell'} by {decimals(abs(change))}"


def _signed(change: float) -> str:
    return ("+" if change > 0 else "") + decimals(change, 4)


def support(settings: Sequence[Setting], item: str, validated: bool) -> list[str]:
    """The sentences under the finding: its spread, how the setting was chosen, and what plain fine-tuning did."""
    plain = next((s for s in settings if s.is_plain), None)
    held = [s for s in settings if not s.is_plain]
    best = least_forgetting(held, KEEP)
    said = []
    if best and best.share and best.share.median < 1:
        if best.share.count > 1:
            ranges = f"{percent(best.share.low)} to {percent(best.share.high)}"
            said.append(f"Over {count_of(best.share.count, 'seed')} that forgetting was {ranges}.")
        said.append(_choice(len(held), validated))
    if plain and plain.gain and plain.forgetting:
        said.append(
            f"With nothing to hold it, {method_name(plain.method)} moved the target loss from "
            f"{_path(plain, 'target')} and the source loss from {_path(plain, 'source')} nats per {item}."
        )
    if len(settings) > 1 and max(len(s.rows) for s in settings) == 1:
        said.append("One seed: how far chance moves these figures is not known.")
    return said


def _choice(count: int, validated: bool) -> str:
    if count == 1:
        return "It is the only setting with a penalty."
    return (
        f"Of {count} settings with a penalty it is the one that forgot least at {percent(KEEP)} of the gain or more, "
        f"{'chosen on a validation part that is not shown' if validated else 'chosen by the figures shown here'}."
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
