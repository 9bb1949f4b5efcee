"""One run of a study: a way, its values and a seed."""

import json
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A way and the values of its keys."""

    way: str
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def words(self) -> str:
        """`strength 4, learning rate 0.001`; empty without values."""
        return ", ".join(f"{leaf(key).replace('_', ' ')} {said(value)}" for key, value in self.values)


@dataclass(frozen=True)
class Combination:
    """A setting and a seed: what is run once, wherever."""

    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """What makes two runs of a study the same."""
        return json.dumps([self.setting.way, dict(self.setting.values), self.seed], sort_keys=True)

    @property
    def name(self) -> str:
        """Of its folder: `kronecker-strength-4-seed-0`."""
        parts = [self.setting.way, *(f"{leaf(key)}-{said(value)}" for key, value in self.setting.values)]
        return in_names("-".join([*parts, f"seed-{self.seed}"]))

    @property
    def words(self) -> str:
        """For people: `kronecker, strength 4, seed 0`."""
        return ", ".join(part for part in (self.setting.way, self.setting.words, f"seed {self.seed}") if part)

    def attributes(self) -> dict[str, Any]:
        """As the study keeps it."""
        return {"way": self.setting.way, "values": dict(self.setting.values), "seed": self.seed}

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> "Combination":
        """What `attributes` was made of."""
        return cls(Setting(attributes["way"], tuple(attributes["values"].items())), attributes["seed"])


def in_names(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", text.replace("%", "pct"))


def leaf(key: str) -> str:
    """`training.learning_rate` -> `learning_rate`."""
    return key.rpartition(".")[2]


def said(value: Any) -> str:
    """A value as short as it is exact."""
    return f"{value:g}" if isinstance(value, float) else str(value)
