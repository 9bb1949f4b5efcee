"""Holding on inside `transformers` and `trl` trainers, without subclassing."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, is_initialized
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from holdfast.errors import HoldfastError
from holdfast.penalties.regularizer import Regularizer
from holdfast.pretrained import FSDP, ZERO_3, check_whole, sharded


class HoldfastCallback(TrainerCallback):
    """Adds each penalty's gradient once per optimizer step; `Trainer(..., callbacks=[HoldfastCallback(penalty)])`.

    It acts between clipping and `optimizer.step()`, identically on every rank, so that strength keeps its meaning
    under gradient accumulation, data parallelism, mixed precision and clipping. Evaluation losses are untouched.
    The logs hold the task's `loss` and, beside it, what each penalty reports (`penalty`, `predicted_forgetting`,
    `distill_kl`). Trackers named in `report_to` run before a trainer's own callbacks; to show them these figures,
    use `trainer.callback_handler.callbacks.insert(0, HoldfastCallback(penalty))`.

    Args:
        penalties: one or several, built on the model that the trainer trains.
        clip: clip task and penalty gradients together to the trainer's `max_grad_norm` (the task's gradient has been
            clipped alone before).

    Raises:
        HoldfastError: at the start of training, under DeepSpeed, which steps inside backward (use `attach` there),
            under FSDP, and for a penalty that prices none of the weights that are trained.
    """

    def __init__(self, *penalties: Regularizer, clip: bool = False) -> None:
        if not penalties:
            raise HoldfastError("HoldfastCallback was given no penalty", remedy="HoldfastCallback(penalty)")
        self.penalties: Sequence[Regularizer] = penalties
        self.clip = clip
        self.scaled_by = 1.0  # what `Regularizer.settle` left of the shift at the end

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse where gradients added here would be dropped or go nowhere."""
        if args.deepspeed or _engine() == DistributedType.DEEPSPEED:
            raise HoldfastError(
                "HoldfastCallback adds gradients before optimizer.step(), and DeepSpeed steps inside backward",
                remedy="use holdfast.attach(trainer, penalty) instead of the callback",
            )
        _refuse_sharding(args, kwargs["model"])
        _require_trained(self.penalties, kwargs["model"])
        _begin(self.penalties, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring a shift that is still over its budget within it."""
        self.scaled_by = _settle(self.penalties)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradients."""
        # No autocast here: the model's own forward carries it already, and weight-space terms keep full precision.
        for penalty in self.penalties:
            penalty.step = state.global_step
            penalty.add_gradient()
        _note(self.penalties, state)
        if self.clip and args.max_grad_norm:
            trained = [p for p in self.penalties[0].model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log penalty and forecast beside the task loss."""
        _report(self.penalties, state, logs)


class _Reporter(TrainerCallback):
    """What `attach` leaves in the trainer for the logs, and for budgets."""

    def __init__(self, penalties: Sequence[Regularizer]) -> None:
        self.penalties = penalties

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell budgets how long the run is, and where it goes on from."""
        _begin(self.penalties, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what a checkpoint has to hold."""
        _note(self.penalties, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring a shift that is still over its budget within it."""
        _settle(self.penalties)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log penalty and forecast beside the task loss."""
        _report(self.penalties, state, logs)


def attach(trainer: Any, *penalties: Regularizer) -> None:
    """Add penalties to the trainer's training loss, for engines that step inside backward (DeepSpeed, ZeRO 1 and 2).

    The gradient's multiplier is 1, as with the callback, but a penalty is evaluated per micro-batch and clipped with
    the task's gradient. Prefer `HoldfastCallback` elsewhere. The evaluation loss and the logged `loss` stay the
    task's; penalty and forecast are logged beside it.

    Raises:
        HoldfastError: no penalty, parameters that are sharded, or a penalty that prices none of the trained weights.
    """
    if not penalties:
        raise HoldfastError("attach was given no penalty", remedy="attach(trainer, penalty)")
    _refuse_sharding(trainer.args, trainer.model)
    _require_trained(penalties, trainer.model)
    plain = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        returned = plain(model, inputs, *args, **kwargs)
        if not model.training:
            return returned
        loss, *rest = returned if isinstance(returned, tuple) else (returned,)
        steps = trainer.current_gradient_accumulation_steps if _is_scaled(trainer, kwargs) else 1
        for penalty in penalties:
            penalty.step = trainer.state.global_step
            term = penalty().to(loss.device) / steps
            loss = loss + (term - term.detach())  # the gradient joins, the logged value stays the task's
        return (loss, *rest) if isinstance(returned, tuple) else loss

    trainer.compute_loss = compute_loss
    trainer.callback_handler.callbacks.insert(0, _Reporter(penalties))  # before the trackers, which log what they see


STATE = "holdfast"  # in the trainer's state, and so in its checkpoints


def _begin(penalties: Sequence[Regularizer], state: TrainerState) -> None:
    """Tell budgets how long the run is; go on from what a checkpoint holds."""
    for penalty in penalties:
        penalty.pace(state.max_steps)
    kept: Any = state.stateful_callbacks.get(STATE) if isinstance(state.stateful_callbacks, dict) else None
    if state.global_step and kept:
        for penalty, own in zip(penalties, kept, strict=True):
            penalty.restore(own)


def _note(penalties: Sequence[Regularizer], state: TrainerState) -> None:
    """Leave the penalties' states where the trainer writes its own."""
    if isinstance(state.stateful_callbacks, dict):
        state.stateful_callbacks[STATE] = [penalty.state() for penalty in penalties]


def _settle(penalties: Sequence[Regularizer]) -> float:
    """Scale the shift back until all budgets hold; what is left of it."""
    left = 1.0
    for penalty in penalties:
        left *= penalty.settle()
    return left


def _report(penalties: Sequence[Regularizer], state: TrainerState, logs: dict[str, Any] | None) -> None:
    """Add the penalties' figures to a training log and to its copy in the history; evaluation logs get none."""
    if logs is None or "loss" not in logs:
        return
    for penalty in penalties:
        figures = penalty.figures()
        logs.update(figures)
        state.log_history[-1].update(figures)


def _is_scaled(trainer: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the trainer takes the loss as already divided by the accumulation steps (transformers 5.23)."""
    told = getattr(trainer, "loss_is_scaled_for_ga", None)
    if told is not None:
        return told
    items: Tensor | int | None = kwargs.get("num_items_in_batch")
    return (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None


def _engine() -> DistributedType | None:
    """What accelerate runs on, also when a launcher chose it and the arguments say nothing."""
    return AcceleratorState().distributed_type if is_initialized() else None


def _refuse_sharding(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse what the arguments announce for later, and a model that is sharded already."""
    if args.fsdp or _engine() == DistributedType.FSDP:
        raise sharded("penalties", FSDP)
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise sharded("penalties", ZERO_3)
    check_whole(model, "penalties")


def _require_trained(penalties: Sequence[Regularizer], model: nn.Module) -> None:
    """Refuse a penalty whose gradient reaches nothing that the trainer trains."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    for penalty in penalties:
        if not trained & {id(parameter) for parameter in penalty.reached()}:
            raise HoldfastError(
                f"the {penalty.name} term prices none of the weights that the trainer trains",
                causes=["it was built on another copy of the model", "SFTTrainer(peft_config=...) wrapped it since"],
                remedy="build it on trainer.model, then trainer.add_callback(HoldfastCallback(penalty))",
            )
