"""What a SIFT adapter trains, as PEFT's configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftConfig
from torch import Tensor

from holdfast.adapters.checks import one_of
from holdfast.adapters.registration import peft_type
from holdfast.errors import HoldfastError
from holdfast.sift.scores import score_of

Scope = Literal["tensor", "row", "global"]
Towards = Literal["zero", "start"]
DENSITY = 0.01  # where nothing says how many
OWN = "callable "  # how a file names a score that was a function


@dataclass
class SiftConfig(PeftConfig):
    """A few chosen entries of the model's own tensors train, in place; everything else stays as it was.

    After every optimizer step w[I] = cast(v): v is a float32 vector, trained by any optimizer, and I the chosen
    entries (arXiv 2312.11875, with the master values and the absolute form that its code lacks).

    Args:
        target_modules: PEFT's grammar; None is "all-linear". Any layer with a weight in floating point will do:
            linear, convolution, embedding, norm.
        exclude_modules: PEFT's grammar, taken out of the targets.
        layers_to_transform, layers_pattern: as in PEFT: only these layers, by number.
        modules_to_save: trained densely and saved beside the entries, such as a new head.
        density: share of each tensor's entries, k = max(1, round(density * entries)); of each row's for scope "row".
            0.01 where neither it nor `count` is given.
        count: entries in all, instead of density (which is then None); shared out in proportion to the tensors' sizes.
        scope: where entries compete: within each "tensor" (the paper), within each "row" (output) of it, or "global".
        floor, ceiling: least and most share of one tensor that scope "global" may give it.
        score: what entries compete by, a name in `holdfast.sift.scores` or a function f(gradient, weight) -> Tensor.
        batches: so many batches are scored together before anything trains; 1 is the paper's. Scores that need no
            gradient read none.
        refresh: choose again every so many optimizer steps (by `SiftCallback` or `refresh`); 0 keeps the first choice
            (the paper).
        biases: the target layers' biases compete too.
        decay_to: what weight decay pulls the entries to: "zero", as dense training does, or "start", the base weight.
        seed: of the random score.

    Raises:
        HoldfastError: a value outside its range, a score that nobody knows, or options that contradict each other.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    density: float | None = None
    count: int | None = None
    scope: Scope = "tensor"
    floor: float = 0.0
    ceiling: float = 1.0
    score: str | Callable[[Tensor, Tensor], Tensor] = "gradient"
    batches: int = 1
    refresh: int = 0
    biases: bool = False
    decay_to: Towards = "zero"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("SIFT")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as all of PEFT's configs
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_size()
        if not 0.0 <= self.floor <= self.ceiling <= 1.0:
            raise HoldfastError(
                f"floor={self.floor} and ceiling={self.ceiling}", wanted="shares with 0 <= floor <= ceiling <= 1"
            )
        one_of("scope", self.scope, Scope)
        one_of("decay_to", self.decay_to, Towards)
        for name, value, least in (("batches", self.batches, 1), ("refresh", self.refresh, 0)):
            _whole(name, value, least)
        if self.scope != "global" and (self.floor, self.ceiling) != (0.0, 1.0):
            raise HoldfastError(
                f"floor={self.floor} and ceiling={self.ceiling} with scope {self.scope!r}",
                wanted="scope 'global', where tensors compete",
            )
        named = isinstance(self.score, str) and not self.score.startswith(OWN)
        if named and score_of(self.score).fixed and self.refresh:
            raise HoldfastError(
                f"refresh={self.refresh} with the score {self.score!r}, which would choose the same entries again",
                remedy="refresh=0, or another score",
            )

    def _check_size(self) -> None:
        if self.count is not None:
            _whole("count", self.count, 1)
            if self.density is not None:
                raise HoldfastError(
                    f"density={self.density} and count={self.count} both say how many", remedy="leave one out"
                )
            return
        self.density = DENSITY if self.density is None else self.density
        if not 0.0 < self.density <= 1.0:
            raise HoldfastError(f"density={self.density}", wanted="a share above 0 and at most 1")

    @property
    def share(self) -> float:
        """The density; 1 where `count` says how many."""
        return 1.0 if self.density is None else self.density

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """As PEFT's; files that were written with a density beside the count that ruled mean the count."""
        held = super().from_json_file(path_json_file, **kwargs)
        return held if held.get("count") is None else held | {"density": None}

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's; a score that is a function is named only, since a file can't hold it."""
        plain = super().to_dict()
        if callable(self.score):
            plain["score"] = OWN + getattr(self.score, "__name__", type(self.score).__name__)
        return plain


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise HoldfastError(f"{name}={value}", wanted=f"a whole number, at least {least}")
