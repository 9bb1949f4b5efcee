"""The interface of the room: a term that joins the loss on the new data."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from holdfast.budgets.budget import Budget
from holdfast.budgets.controller import HASTY, PATIENT
from holdfast.budgets.gauge import Gauge
from holdfast.budgets.settling import settle, start_of, starts_within
from holdfast.budgets.steering import LOOKS, Steering
from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss

Accepted = Budget | float | str  # see `Budget.parse`
Handle = tuple[Callable[[], float | None], Callable[[float], None]]  # a forecast, and what sets its strength


class Regularizer(ABC):
    """A differentiable scalar of the model's trainable parameters.

    Used in a plain loop as `loss = task_loss + penalty()`, or once per optimizer step through `add_gradient`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    model: nn.Module
    # The optimizer step it is evaluated for: it decides what a term with data of its own draws, so that runs resume
    # exactly. Trainers set it; in a plain loop it stays None, and every evaluation counts as the next step.
    step: int | None = None
    shared: ClassVar[bool] = True  # whether every rank computes the same value
    knob: ClassVar[str] = "strength"  # the attribute that says how much it counts
    steerings: Sequence[Steering] = ()  # what sets the knob, where a budget was given

    @abstractmethod
    def __call__(self) -> Tensor:
        """The term to add to the loss, a 0-d tensor."""

    @abstractmethod
    def report(self) -> dict[str, float]:
        """What to log of the last evaluation."""

    @property
    @abstractmethod
    def predicted_forgetting(self) -> float | None:
        """The rise of the source loss in nats per item that is expected now; None where nothing is known."""

    @property
    def foretells(self) -> bool:
        """Whether it has a forecast, be it only after its first evaluation: a budget needs one."""
        return self.predicted_forgetting is not None

    def keep_within(
        self,
        budget: Accepted | Sequence[Accepted],
        held_out: Any = None,
        *,
        steps: int | None = None,
        looks: int = LOOKS,
        forward_loss: ForwardLoss | None = None,
    ) -> Self:
        """Let a budget set the strength from now on, step by step; call it while the model is at its start.

        With `held_out`, what is measured there corrects the forecast (see `holdfast.budgets.controller`); without, the
        forecast alone steers. Call `settle` after the last step, unless a trainer's callback does: it scales a shift
        that is still outside back to the budget.

        Args:
            budget: nats per source item, or a text for `Budget.parse`; of several anchors one for each, or for all.
            held_out: source batches that nothing else uses; of several budgets, a list of such.
            steps: of the run; None: a trainer knows them, a plain loop counts as 1000.
            looks: how often to measure over the run.
            forward_loss: of models that are not of transformers, as for `Anchor.estimate`.

        Raises:
            HoldfastError: a term without a forecast, a budget that can't be met or measured, or a count that differs.
        """
        budgets = list(budget) if isinstance(budget, Sequence) and not isinstance(budget, str) else [budget]
        sources = list(held_out) if held_out is not None and len(budgets) > 1 else [held_out] * len(budgets)
        if not self.foretells:
            raise HoldfastError(
                f"the {self.name} term forecasts no forgetting, so no budget can steer it",
                remedy="the quadratic penalty with an anchor that forecasts, or distillation",
            )
        handles = self._handles(len(budgets))
        if len(sources) != len(budgets):
            raise HoldfastError(f"{len(budgets)} budgets and {len(sources)} held_out sources", wanted="one for each")
        made = []
        for (forecast, turn), one, source in zip(handles, map(Budget.parse, budgets), sources, strict=True):
            gauge = None if source is None else Gauge(self.model, source, one, forward_loss, name="steering")
            haste = HASTY if self.shared else PATIENT  # what runs the model sees a few sequences a step
            told = self._on_all_ranks(forecast)
            made.append(Steering(one, told, turn, gauge, steps=steps, looks=looks, haste=haste))
        if self.shared and None in sources:
            warnings.warn(
                "the forecast alone steers this budget, and forecasts are low: a Kronecker anchor's says a fifth to a "
                "half of what is forgotten, one of samples-joint 0.7 to 1.2; name source data to measure on",
                stacklevel=2,
            )
        self.steerings = made
        self._start = start_of(self._trainable())
        return self

    def _handles(self, count: int) -> list[Handle]:
        """A forecast and a knob for each of so many budgets."""
        if count != 1:
            raise HoldfastError(f"{count} budgets for one {self.name} term", wanted="one budget")
        return [(lambda: self.predicted_forgetting, lambda strength: setattr(self, self.knob, strength))]

    def _on_all_ranks(self, forecast: Callable[[], float | None]) -> Callable[[], float | None]:
        """The forecast, or the ranks' mean of it where each has its own."""
        return forecast if self.shared else lambda: _mean_figure(forecast(), self.model)

    def steer(self) -> None:
        """Set the strength for this step, where a budget was given; a term calls it before it uses its strength."""
        for steering in self.steerings:
            steering.turn(self.step)

    def pace(self, steps: int) -> None:
        """Tell budgets how long the run is."""
        for steering in self.steerings:
            steering.pace(steps)

    @torch.no_grad()
    def settle(self) -> float:
        """Scale what was trained back until every budget holds; the share of its way that is left, 1 if it holds.

        See `holdfast.budgets.settling.settle`. Call it once, after training.
        """
        if not self.steerings:
            return 1.0
        excess = lambda: max(one.final() / one.controller.limit for one in self.steerings)  # noqa: E731
        trained = self._trainable()
        within = starts_within(self.model)  # entries are chosen during training, so their start is known at its end
        start = [within.get(id(one), first) for one, first in zip(trained, self._start, strict=True)]
        return settle(trained, start, excess)

    def figures(self) -> dict[str, float]:
        """`report`, the strength, and what budgets say: of a second budget with `_2` behind the names, and so on."""
        found = {**self.report(), "strength": getattr(self, self.knob)}
        for number, steering in enumerate(self.steerings, start=1):
            suffix = "" if number == 1 else f"_{number}"
            found |= {f"{name}{suffix}": figure for name, figure in steering.report().items()}
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the step, in JSON's types."""
        return {"steerings": [steering.state() for steering in self.steerings]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            HoldfastError: it is of other budgets.
        """
        if len(state["steerings"]) != len(self.steerings):
            raise HoldfastError(
                f"the run had {len(state['steerings'])} budgets, and now there are {len(self.steerings)}",
                remedy="resume with the same budgets, or start again",
            )
        for steering, own in zip(self.steerings, state["steerings"], strict=True):
            steering.restore(own)

    def add_gradient(self, multiplier: float = 1.0) -> float:
        """Add `multiplier` times the term's gradient to `.grad`; returns the term's value.

        Call it once per optimizer step, after backward and before `optimizer.step()`; with a gradient scaler, after
        `scaler.unscale_(optimizer)`. The multiplier stays what was asked for under gradient accumulation, data
        parallelism and mixed precision, because it meets none of them. Where ranks draw different data, the mean of
        their gradients is added on each.
        """
        value = self()
        if value.requires_grad:
            for parameter, gradient in self._gradients(value):
                if not self.shared:
                    gradient = _mean_over_ranks(gradient, parameter)
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=multiplier)
        return float(value.detach())

    def reached(self) -> list[nn.Parameter]:
        """The trainable parameters that the term's gradient reaches."""
        if not self.shared:  # it runs the whole model, on data of its own
            return self._trainable()
        steerings, self.steerings = self.steerings, ()  # this is no step
        try:
            value = self()
        finally:
            self.steerings = steerings
        return [p for p, gradient in self._gradients(value) if gradient is not None] if value.requires_grad else []

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _gradients(self, value: Tensor) -> list[tuple[nn.Parameter, Tensor | None]]:
        parameters = self._trainable()
        return list(zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))


def check_alone(name: str, value: float, default: float) -> None:
    """Raise HoldfastError where a strength was given beside the budget that sets it."""
    if value != default:
        raise HoldfastError(f"{name}={value:g} beside a budget, which sets it", remedy="leave one of them out")


def _mean_figure(figure: float | None, model: nn.Module) -> float | None:
    """The mean over all ranks of a figure that all of them have."""
    if figure is None or not (dist.is_available() and dist.is_initialized()):
        return figure
    shared = torch.tensor(figure, dtype=torch.float32, device=next(model.parameters()).device)
    dist.all_reduce(shared)
    return float(shared) / dist.get_world_size()


def _mean_over_ranks(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor | None:
    """The mean gradient over all ranks, as DDP's; a rank that did not reach the parameter takes part with zero."""
    if not (dist.is_available() and dist.is_initialized()):
        return gradient
    gradient = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()
