"""Training a prepared model on rows of text, through `transformers.Trainer` with the penalties beside it."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from holdfast.batches import Row, collate
from holdfast.errors import HoldfastError
from holdfast.machine import peak_memory_mb, reset_peak_memory
from holdfast.penalties.regularizer import Regularizer
from holdfast.recipe import TrainingSettings
from holdfast.trainers import HoldfastCallback

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


def train(
    model: nn.Module,
    rows: Sequence[Row],
    settings: TrainingSettings,
    *,
    penalties: Sequence[Regularizer] = (),
    folder: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train in place.

    Args:
        model: prepared by a tuner; only what requires a gradient is trained.
        rows: token ids and labels; batches are drawn from them in an order given by the seed.
        settings: steps, batch, learning rate and the like.
        penalties: added once per optimizer step.
        folder: where `checkpoints/` and `log.jsonl` go; None keeps nothing.
        resume: continue from the last checkpoint in the folder, to the same result as an uninterrupted run.
        seed: of order, dropout and initialisation.
        on_step: called with (step, steps) after each step.
        quiet: no progress bar of the Trainer's own.

    Raises:
        HoldfastError: nothing to train, no checkpoint to resume from, or a loss that is not finite.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise HoldfastError("no parameter of the model is trainable", remedy="prepare it with a tuner first")
    set_seed(seed)
    arguments = _arguments(settings, folder, seed, quiet)
    watch = _Watch(folder, on_step)
    callbacks: list[TrainerCallback] = [HoldfastCallback(*penalties), watch] if penalties else [watch]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=list(rows),
        data_collator=collate,
        callbacks=callbacks,
    )
    if quiet:
        trainer.remove_callback(_printer())
    reset_peak_memory()
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=_checkpoint(folder) if resume else None)
    seconds = time.perf_counter() - started
    return Trained(
        steps=trainer.state.global_step,
        seconds=seconds,
        seconds_per_step=_mean(watch.wall),
        cpu_seconds_per_step=_mean(watch.cpu),
        peak_memory_mb=peak_memory_mb(),
        trainable_parameters=trainable,
        history=[entry for entry in trainer.state.log_history if "loss" in entry],
    )


def _arguments(settings: TrainingSettings, folder: Path | None, seed: int, quiet: bool) -> TrainingArguments:
    saving = folder is not None and settings.save_steps > 0
    return TrainingArguments(
        output_dir=str((folder or Path()) / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * settings.steps) if settings.steps > 0 else 0,
        num_train_epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        save_strategy="steps" if saving else "no",
        save_steps=max(settings.save_steps, 1),
        save_total_limit=2,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        report_to=settings.report_to,
        disable_tqdm=quiet,
        seed=seed,
        data_seed=seed,
    )


def _printer() -> type[TrainerCallback]:
    from transformers import PrinterCallback

    return PrinterCallback


def _checkpoint(folder: Path | None) -> str:
    found = get_last_checkpoint(str(folder / "checkpoints")) if folder and (folder / "checkpoints").is_dir() else None
    if found is None:
        raise HoldfastError(
            f"there is no checkpoint to resume from in {folder}",
            causes=["the run stopped before its first checkpoint", "--out names another folder"],
            remedy="start again without --resume",
        )
    return found


class _Watch(TrainerCallback):
    """Times the steps, passes progress on, writes `log.jsonl`, and stops at a loss that is not finite."""

    def __init__(self, folder: Path | None, on_step: Callable[[int, int], None] | None) -> None:
        self.log = None if folder is None else folder / "log.jsonl"
        self.on_step = on_step
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.log is None or not state.is_world_process_zero:
            return
        kept = []
        if state.global_step > 0 and self.log.is_file():  # resumed: the log goes on from the checkpoint
            kept = [
                line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= state.global_step
            ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("".join(f"{line}\n" for line in kept))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, cpu = self.started
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise HoldfastError(
                f"the training loss is {logs['loss']} at step {state.global_step}",
                causes=["the learning rate is too high", "float16 overflows", "the data holds an empty completion"],
                remedy="lower --learning-rate, or train in float32; the last checkpoint is untouched",
            )
        if self.log is not None and state.is_world_process_zero:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _mean(times: list[float]) -> float:
    """Not the median: a penalty of every n-th step must show."""
    steady = times[WARM_UP:] or times
    return sum(steady) / max(len(steady), 1)
