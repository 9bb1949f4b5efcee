"""What the model wrote before and after, prompt by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.report.comparison import Setting

PROMPTS = 8  # on the page; results.json holds all
SHORT = 160  # characters


@dataclass
class Prompt:
    """One prompt, its continuation before training and those after, with the settings that wrote them."""

    text: str
    side: str
    before: str
    after: list[tuple[Setting, str]] = field(default_factory=list)

    @property
    def short(self) -> bool:
        """Whether it is shown again in front of every continuation."""
        return len(self.text) <= SHORT


def continuations(settings: Sequence[Setting]) -> list[Prompt]:
    """The samples of each setting's first row that has any; source prompts first, then target prompts."""
    found: dict[tuple[str, str], Prompt] = {}
    for setting in settings:
        sampled = [row["samples"] for row in setting.rows if row.get("samples")]
        for sample in sampled[0] if sampled else []:
            text, side = str(sample.get("prompt", "")), str(sample.get("side", ""))
            before, after = (_without(text, sample.get(when)) for when in ("before", "after"))
            prompt = found.setdefault((side, text), Prompt(text, side, before))
            prompt.after.append((setting, after))
    order = {"source": 0, "target": 1}
    return sorted(found.values(), key=lambda prompt: order.get(prompt.side, 2))[:PROMPTS]


def _without(prompt: str, text: object) -> str:
    """The continuation alone."""
    return str(text or "").removeprefix(prompt)
