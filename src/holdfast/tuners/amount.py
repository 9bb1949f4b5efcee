"""How many parameters may train, as a recipe says it."""

import re
from dataclasses import dataclass
from fractions import Fraction

from holdfast.errors import HoldfastError


@dataclass(frozen=True)
class Amount:
    """A number of parameters, or a share of the base model's."""

    words: str
    count: int | None = None
    share: Fraction | None = None

    @classmethod
    def parse(cls, said: int | str) -> "Amount":
        """Of "0.5%" or 120000.

        Raises:
            HoldfastError: neither, or none at all.
        """
        words = str(said).strip()
        percent = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*%", words)
        plain = re.fullmatch(r"\d[\d_,]*", words)
        if percent and 0 < float(percent[1]) <= 100:
            return cls(words, share=Fraction(percent[1]) / 100)
        if plain and not isinstance(said, bool) and (count := int(words.replace("_", "").replace(",", ""))) > 0:
            return cls(words, count=count)
        raise HoldfastError(f"parameters={said!r}", wanted="a share of the model, such as 0.5%, or a number of them")

    def of(self, size: int) -> int:
        """The number, for a model of `size` parameters."""
        return self.count if self.count is not None else int((self.share or 0) * size)
