"""Weight space and function space under one strength."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.penalties.anchored import check_number
from holdfast.penalties.regularizer import Handle, Regularizer


class Together(Regularizer):
    """strength * sum over terms of share * term: one number to turn for several ways of holding on.

    A quadratic penalty of strength 1 and a distillation of weight 1 are both nats of forgetting per source item, one
    extrapolated and one seen, so they add up in one unit: build the terms with strength and weight 1.

    Args:
        model: the model that the terms were built on.
        terms: what to hold on with; each keeps the factor that it was built with.
        strength: 0 or more, on all of them.
        shares: of each term; None: the same for all, summing to 1.

    Raises:
        HoldfastError: no terms, terms of another model, shares that do not fit.
    """

    name = "together"
    paper = "Bayesian PEFT, arXiv 2402.12220, with learning without forgetting, arXiv 1606.09282"

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[Regularizer],
        strength: float = 1.0,
        shares: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise HoldfastError(f"the model is a {type(model).__name__}", wanted="Together(model, terms, strength)")
        check_number("strength", strength)
        self.model, self.terms, self.strength = model, list(terms), strength
        self.shares = [1 / len(self.terms) for _ in self.terms] if shares is None else list(shares)
        if not self.terms or len(self.shares) != len(self.terms):
            raise HoldfastError(
                f"{len(self.terms)} terms and {len(self.shares)} shares", wanted="one share for each of the terms"
            )
        for share in self.shares:
            check_number("shares", share)
        if any(term.model is not model for term in self.terms):
            raise HoldfastError("a term was built on another model", remedy="build all terms on the model you train")

    def __repr__(self) -> str:
        return f"Together({', '.join(map(repr, self.terms))}, strength={self.strength})"

    @property
    def shared(self) -> bool:  # type: ignore[override]
        """Whether every rank computes the same value: as soon as one term draws data of its own, none does."""
        return all(term.shared for term in self.terms)

    def __call__(self) -> Tensor:
        """strength * sum of share * term, a 0-d tensor."""
        values = []
        for share, term in zip(self.shares, self.terms, strict=True):
            term.step = self.step
            values.append(share * term())
        self.steer()
        return self.strength * torch.stack([value.to(values[0].device) for value in values]).sum()

    @property
    def predicted_forgetting(self) -> float | None:
        """What was seen, where a term runs the model on source data; else what is extrapolated."""
        known = [(term.shared, term.predicted_forgetting) for term in self.terms]
        found: list[Any] = [figure for _, figure in sorted(known, key=lambda one: one[0]) if figure is not None]
        return found[0] if found else None

    @property
    def foretells(self) -> bool:
        """Whether any term does."""
        return any(term.foretells for term in self.terms)

    def _handles(self, count: int) -> list[Handle]:
        """The one strength, set by what is seen where a term sees it, else by what is extrapolated."""
        (_, turn), *_ = super()._handles(count)
        term = min((term for term in self.terms if term.foretells), key=lambda term: term.shared)
        (forecast, _), *_ = term._handles(1)
        return [(forecast, turn)]

    def state(self) -> dict[str, Any]:
        """With the terms' own."""
        return {**super().state(), "terms": [term.state() for term in self.terms]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; raises HoldfastError where it is of other budgets."""
        super().restore(state)
        for term, own in zip(self.terms, state["terms"], strict=True):
            term.restore(own)

    def report(self) -> dict[str, float]:
        """What every term says; a name that comes twice is the later term's."""
        return {name: figure for term in self.terms for name, figure in term.report().items()}
