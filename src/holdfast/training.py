"""Training a prepared model on rows of text, through `transformers.Trainer` with the penalties beside it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from holdfast import checkpoints, files
from holdfast.adapters.gradients import GradientCheck
from holdfast.batches import Row, collate
from holdfast.checkpoints import Run
from holdfast.errors import HoldfastError
from holdfast.machine import peak_memory_mb, reset_peak_memory
from holdfast.penalties.regularizer import Regularizer
from holdfast.progress import bar
from holdfast.recipe import TrainingSettings
from holdfast.trainers import HoldfastCallback
from holdfast.watching import LIVE_LOG, MEASURED, Watch, by_side

WARM_UP = 4  # steps whose time says more of allocation than of work


@dataclass
class Trained:
    """What training cost, and what was logged along the way."""

    steps: int
    seconds: float
    seconds_per_step: float  # mean, the first steps left out
    cpu_seconds_per_step: float  # of this process: what other processes on the machine can't blur
    peak_memory_mb: float
    trainable_parameters: int
    history: list[dict[str, float]] = field(default_factory=list)
    along: list[dict[str, float]] = field(default_factory=list)  # losses measured along the way, by step
    scaled_by: float = 1.0  # what a budget left of the shift in the end


def train(
    model: nn.Module,
    rows: Sequence[Row],
    settings: TrainingSettings,
    *,
    penalties: Sequence[Regularizer] = (),
    callbacks: Sequence[TrainerCallback] = (),
    folder: Path | None = None,
    run: Run | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    on_measure: Callable[[], dict[str, float]] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train in place.

    Args:
        model: prepared by a tuner; only what requires a gradient is trained.
        rows: token ids and labels; batches are drawn from them in an order given by the seed.
        settings: steps, batch, learning rate and the like.
        penalties: added once per optimizer step.
        callbacks: what the method wants called while it trains.
        folder: where `checkpoints/` and the live log go; None keeps nothing.
        run: what its checkpoints say that they belong to; None writes no checkpoints.
        checkpoint: go on from there, to the same result as an uninterrupted run.
        seed: of order, dropout and initialisation.
        on_step: called with (step, steps) after each step.
        on_measure: called every `settings.eval_steps`; returns losses by side, which make up `along`.
        on_log: called with what was logged at a step.
        quiet: no progress bar.

    Raises:
        HoldfastError: nothing to train, settings that the trainer refuses, a parameter that no gradient reaches,
            a loss that is not finite, no disk space.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise HoldfastError("no parameter of the model is trainable", remedy="prepare it with a tuner first")
    set_seed(seed)
    watch = Watch(folder, run, checkpoint, settings.eval_steps, on_step=on_step, on_measure=on_measure, on_log=on_log)
    holds = HoldfastCallback(*penalties) if penalties else None
    trainer = _trainer(
        model, rows, _settings(settings, folder if run is not None else None, seed), [*callbacks, watch]
    )
    if holds is not None:
        trainer.callback_handler.callbacks.insert(0, holds)  # before the trackers, which log what they see
    trainer.callback_handler.callbacks.insert(0, GradientCheck())  # before penalties add gradients of their own
    reset_peak_memory()
    started = time.perf_counter()
    with _keeping_whole(folder), bar("train", None, shown=not quiet, unit="step") as watch.bar:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    return Trained(
        steps=trainer.state.global_step,
        seconds=seconds,
        seconds_per_step=_mean(watch.wall),
        cpu_seconds_per_step=_mean(watch.cpu),
        peak_memory_mb=peak_memory_mb(),
        trainable_parameters=trainable,
        history=[entry for entry in trainer.state.log_history if "loss" in entry],
        along=[by_side(entry) for entry in trainer.state.log_history if MEASURED in entry],
        scaled_by=1.0 if holds is None else holds.scaled_by,
    )


def _settings(settings: TrainingSettings, folder: Path | None, seed: int) -> dict[str, Any]:
    """The arguments of `TrainingArguments`."""
    saving = folder is not None and settings.save_steps > 0
    return {
        "output_dir": str((folder or Path()) / checkpoints.FOLDER),
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,  # below 1: a share
        "num_train_epochs": settings.epochs,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "bf16": settings.bf16,
        "logging_steps": settings.log_steps,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "save_strategy": "steps" if saving else "no",
        "save_steps": max(settings.save_steps, 1),
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": settings.report_to,
        "disable_tqdm": True,  # its bar writes the logs to standard output
        "seed": seed,
        "data_seed": seed,
    }


def _trainer(
    model: nn.Module, rows: Sequence[Row], settings: dict[str, Any], callbacks: list[TrainerCallback]
) -> Trainer:
    try:
        trainer = _Trainer(
            model=model,
            args=TrainingArguments(**settings),
            train_dataset=list(rows),
            data_collator=collate,
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, ImportError) as error:  # a tracker that is not installed, bf16 that is not there
        raise HoldfastError(
            f"the trainer refuses these settings: {' '.join(str(error).split())}",
            causes=["training.report_to names a tracker that is not installed", "training.bf16 on a machine without"],
            remedy="mend the recipe's training part",
        ) from error
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Trainer(Trainer):
    """Stops at the first loss that is not finite, before its gradient reaches the weights or a checkpoint."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise HoldfastError(
                f"the training loss is {float(loss)} at step {self.state.global_step + 1}",
                causes=[
                    "the learning rate or the strength is too high",
                    "float16 overflows",
                    "the pre-trained weights hold NaN",
                ],
                remedy="start again with a lower --learning-rate, or in float32 (--set dtype=float32)",
            )
        return loss


@contextmanager
def _keeping_whole(folder: Path | None) -> Iterator[None]:
    """Remove a checkpoint that was being written when training stopped; explain a full disk."""
    try:
        yield
    except Exception as error:
        if folder is None or not files.is_about_the_disk(error):
            raise
        raise files.not_written(folder / checkpoints.FOLDER, error) from error
    finally:
        if folder is not None:
            checkpoints.discard_cut(folder)
            if not checkpoints.whole(folder):
                (folder / LIVE_LOG).unlink(missing_ok=True)


def _mean(times: list[float]) -> float:
    """Not the median: a penalty of every n-th step must show."""
    steady = times[WARM_UP:] or times
    return sum(steady) / max(len(steady), 1)
