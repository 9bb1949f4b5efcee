"""Names, numbers and the finding, as a reader meets them."""

import math
from collections.abc import Mapping

from holdfast import catalogue
from holdfast.report.comparison import BUDGET_POINTS, PLAIN, Setting, Span

MISSING = "–"
_METHODS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "lora-fa": "LoRA-FA",
    "full": "full fine-tuning",
    "sift": "SIFT",
    "ia3": "(IA)³",
    "bitfit": "BitFit",
    "prefix": "prefix tuning",
    "bottleneck": "bottleneck adapters",
    "convadapter": "ConvAdapter",
    "": "fine-tuning",
}
_PENALTIES = {
    PLAIN: "Plain",
    "identity": "L2 to the start",
    "diagonal": "Diagonal",
    "kronecker": "Kronecker",
    "distill": "Distillation",
    "distill-self": "Distillation on its own text",
    "distill-source": "Distillation on source text",
    "distill-target": "Distillation on target inputs",
    "distill-random": "Distillation on random tokens",
    "replay": "Replay",
}
_MEANINGS = {
    PLAIN: "fine-tuned with nothing to hold it",
    "identity": "every weight is pulled back to its start alike",
    "diagonal": "each weight is pulled back by what its move alone costs the source loss",
    "kronecker": "weights are pulled back by what their joint move costs the source loss",
    "distill": "the model keeps its own earlier answers on source text",
    "distill-self": "the model keeps its own earlier answers on text it sampled itself: no old data",
    "distill-source": "the model keeps its own earlier answers on real source text",
    "distill-target": "the model keeps its own earlier answers on target inputs: no old data",
    "distill-random": "the model keeps its own earlier answers on random tokens: no old data",
    "replay": "source text is trained on beside the target: the baseline that needs all old data",
}
_REHEARSED = ("distill", "distill-source", "replay")  # need old data in every step


def method_name(method: str) -> str:
    """`lora` -> LoRA."""
    return _METHODS.get(method, method)


def in_words(components: Mapping[str, int]) -> str:
    """Trained parameters by the part of the method that they belong to: `lora_A 1,024, lora_B 1,152`."""
    return ", ".join(f"{name} {count:,}" for name, count in components.items())


def family_name(setting: Setting) -> str:
    """`LoRA`; with what else tells the runs of merged reports apart: `LoRA, rank 16 (llama on code.txt)`."""
    panel, method, variant = setting.family
    name = ", ".join(filter(None, [method_name(method), variant]))
    return f"{name} ({panel})" if panel else name


def penalty_name(penalty: str) -> str:
    """`kronecker+distill-self` -> Kronecker + distillation on its own text."""
    parts, comma, damping = penalty.partition(", ")
    first, *others = (_PENALTIES.get(part, part) for part in parts.split("+"))
    return " + ".join([first, *(other[:1].lower() + other[1:] for other in others)]) + comma + damping


def meaning(penalty: str) -> str:
    """One line on what a penalty does; empty for one that the page does not know."""
    return "; ".join(_MEANINGS[part] for part in penalty.partition(", ")[0].split("+") if part in _MEANINGS)


def old_data(penalty: str) -> str:
    """When old data is needed."""
    parts = penalty.partition(", ")[0].split("+")
    if any(part in _REHEARSED for part in parts):
        return "in every step"
    # A part is a curvature's name, or begins with it: "kronecker-root", "diagonal-sequence", "diagonal@adapter".
    measured = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
    anchored = any(f"{part}-".replace("@", "-").startswith(f"{kind}-") for part in parts for kind in measured)
    return "once, for the anchor" if anchored else "none"


def strength_text(setting: Setting) -> str:
    """`3`, or `1, distill 0.3` where a setting has more than a strength."""
    return ", ".join(_strengths(setting)).removeprefix("strength\u00a0") or MISSING


def setting_name(setting: Setting, *, alone: bool = True) -> str:
    """`Kronecker (strength 3)`; with its family in front where there are several on the page."""
    strengths = ", ".join(_strengths(setting))
    name = penalty_name(setting.penalty) + (f" ({strengths})" if strengths else "")
    return name if alone else f"{family_name(setting)}: {name}"


def _strengths(setting: Setting) -> list[str]:
    return [_strength(key, value) for key, value in setting.strengths]


def _strength(key: str, value: float) -> str:
    if key == BUDGET_POINTS:
        return f"budget\u00a0{value:g}\u00a0points"
    return f"{key.replace('_', ' ')}\u00a0{value:g}"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with a true minus sign; a rounded zero has none."""
    if value is None:
        return MISSING
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def percent(fraction: float | None) -> str:
    """`93 %`; one decimal below 10 %."""
    if fraction is None:
        return MISSING
    return f"{decimals(100 * fraction, 1 if 0 < abs(fraction) < 0.0995 else 0)}\u00a0%"


def count_of(number: int, thing: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def seconds(value: float | None) -> str:
    """A duration with its unit."""
    if value is None:
        return MISSING
    if value >= 600:
        return f"{value / 60:.0f}\u00a0min"
    return (
        f"{value * 1000:.0f}\u00a0ms"
        if value < 1
        else f"{value:.0f}\u00a0s"
        if value >= 100
        else f"{value:.1f}\u00a0s"
    )


def memory(megabytes: float | None) -> str:
    """Memory with its unit."""
    if megabytes is None:
        return MISSING
    return f"{megabytes / 1024:.1f}\u00a0GB" if megabytes >= 10_000 else f"{megabytes:,.0f}\u00a0MB"


def middle(found: Span | None) -> float | None:
    """The median, if there is one."""
    return found.median if found else None


def perplexity(nats: float | None) -> str:
    """exp of a loss in nats per token."""
    if nats is None or nats > 20:
        return MISSING
    return decimals(math.exp(nats), 1 if nats < math.log(1000) else 0)


def whole(value: float | None) -> str:
    """A count with separated thousands."""
    return MISSING if value is None else f"{value:,.0f}"
