"""Holding on inside `transformers` and `trl` trainers, without subclassing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from holdfast.errors import HoldfastError
from holdfast.penalties.regularizer import Regularizer


class HoldfastCallback(TrainerCallback):
    """Adds each penalty's gradient once per optimizer step; `Trainer(..., callbacks=[HoldfastCallback(penalty)])`.

    It acts between clipping and `optimizer.step()`, identically on every rank, so that strength keeps its meaning
    under gradient accumulation, data parallelism, mixed precision and clipping. Evaluation losses are untouched.

    Args:
        penalties: one or several.
        clip: clip task and penalty gradients together to the trainer's `max_grad_norm` (the task's gradient has been
            clipped alone before).

    Raises:
        HoldfastError: at the start of training under DeepSpeed, which steps inside backward; use `attach` there.
    """

    def __init__(self, *penalties: Regularizer, clip: bool = False) -> None:
        if not penalties:
            raise HoldfastError("HoldfastCallback was given no penalty", remedy="HoldfastCallback(penalty)")
        self.penalties: Sequence[Regularizer] = penalties
        self.clip = clip

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse where gradients added here would be dropped."""
        if args.deepspeed is not None:
            raise HoldfastError(
                "HoldfastCallback adds gradients before optimizer.step(), and DeepSpeed steps inside backward",
                remedy="use holdfast.attach(trainer, penalty) instead of the callback",
            )
        if args.fsdp:
            raise HoldfastError(
                "HoldfastCallback reads whole parameters, and FSDP shards them",
                remedy="train under DDP (torchrun without fsdp)",
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradients."""
        device = args.device.type
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        for penalty in self.penalties:
            penalty.step = state.global_step
            with torch.autocast(device, dtype=dtype, enabled=args.bf16 or args.fp16):
                penalty.add_gradient()
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
        if logs is None or "loss" not in logs:
            return
        for penalty in self.penalties:
            report = penalty.report()
            logs.update(report)
            if state.log_history:
                state.log_history[-1].update(report)


def attach(trainer: Any, *penalties: Regularizer) -> None:
    """Add penalties to the trainer's training loss, for engines that step inside backward (DeepSpeed).

    The gradient's multiplier is 1, as with the callback, but a penalty is evaluated per micro-batch. Prefer
    `HoldfastCallback` elsewhere. The evaluation loss is untouched.
    """
    if not penalties:
        raise HoldfastError("attach was given no penalty", remedy="attach(trainer, penalty)")
    plain = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        returned = plain(model, inputs, *args, **kwargs)
        if not model.training:
            return returned
        loss, *rest = returned if isinstance(returned, tuple) else (returned,)
        items = kwargs.get("num_items_in_batch")
        steps = trainer.current_gradient_accumulation_steps if _is_scaled(trainer, items) else 1
        for penalty in penalties:
            penalty.step = trainer.state.global_step
            loss = loss + penalty().to(loss.device) / steps
        return (loss, *rest) if isinstance(returned, tuple) else loss

    trainer.compute_loss = compute_loss


def _is_scaled(trainer: Any, items: Tensor | int | None) -> bool:
    """Whether the trainer takes the loss as already divided by the accumulation steps (transformers 5.23)."""
    told = getattr(trainer, "loss_is_scaled_for_ga", None)
    if told is not None:
        return told
    return (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
