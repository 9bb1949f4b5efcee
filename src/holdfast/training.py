"""Training a prepared model on rows of text, through `transformers.Trainer` with the penalties beside it."""

import json
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
from holdfast.batches import Row, collate
from holdfast.checkpoints import Run
from holdfast.errors import HoldfastError
from holdfast.machine import peak_memory_mb, reset_peak_memory
from holdfast.penalties.regularizer import Regularizer
from holdfast.progress import bar
from holdfast.recipe import TrainingSettings
from holdfast.trainers import HoldfastCallback

WARM_UP = 4  # steps whose time says more of allocation than of work
MEASURED = "measured"  # in the entries of the trainer's history that hold what was measured along the way
LIVE_LOG = "log.partial.jsonl"  # one line per logged step, while it runs


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
    folder: Path | None = None,
    run: Run | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    on_measure: Callable[[], dict[str, float]] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train in place.

    Args:
        model: prepared by a tuner; only what requires a gradient is trained.
        rows: token ids and labels; batches are drawn from them in an order given by the seed.
        settings: steps, batch, learning rate and the like.
        penalties: added once per optimizer step.
        folder: where `checkpoints/` and the live log go; None keeps nothing.
        run: what its checkpoints say that they belong to; None writes no checkpoints.
        checkpoint: go on from there, to the same result as an uninterrupted run.
        seed: of order, dropout and initialisation.
        on_step: called with (step, steps) after each step.
        on_measure: called every `settings.eval_steps`; returns losses by side, which make up `along`.
        quiet: no progress bar.

    Raises:
        HoldfastError: nothing to train, settings that the trainer refuses, a loss that is not finite, no disk space.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise HoldfastError("no parameter of the model is trainable", remedy="prepare it with a tuner first")
    set_seed(seed)
    watch = _Watch(folder, run, checkpoint, on_step, on_measure, settings.eval_steps)
    holds = HoldfastCallback(*penalties) if penalties else None
    trainer = _trainer(model, rows, _settings(settings, folder if run is not None else None, seed), [watch])
    if holds is not None:
        trainer.callback_handler.callbacks.insert(0, holds)  # before the trackers, which log what they see
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
        along=[_by_side(entry) for entry in trainer.state.log_history if MEASURED in entry],
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


class _Watch(TrainerCallback):
    """Times the steps, passes progress on, writes the live log, and seals checkpoints."""

    def __init__(
        self,
        folder: Path | None,
        run: Run | None,
        checkpoint: Path | None,
        on_step: Callable[[int, int], None] | None,
        on_measure: Callable[[], dict[str, float]] | None,
        every: int,
    ) -> None:
        self.folder, self.run, self.on_step, self.on_measure, self.every = folder, run, on_step, on_measure, every
        self.own = [] if checkpoint is None else [checkpoint]  # checkpoints of this run
        self.bar: Any = None
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.reset(total=state.max_steps)
        self.bar.update(state.global_step)
        if self.folder is not None and state.is_world_process_zero:
            earlier = [entry for entry in state.log_history if "loss" in entry]  # resumed: the log goes on
            files.write_text(self.folder / LIVE_LOG, "".join(map(log_line, earlier)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, cpu = self.started
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.bar.update()
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)
        if self.on_measure is not None and self.every and state.global_step % self.every == 0:
            losses = {f"{side}_loss": loss for side, loss in self.on_measure().items()}
            state.log_history.append({"step": state.global_step, MEASURED: True, **losses})  # checkpoints keep it
        # The end is in the log; and a logged loss, the mean since the last one, never spans a checkpoint: a resumed
        # run has not seen what was before it.
        if control.should_save or state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.folder is None or self.run is None or not state.is_world_process_zero:
            return
        checkpoint = self.folder / checkpoints.FOLDER / f"checkpoint-{state.global_step}"
        checkpoints.seal(checkpoint, self.run)
        self.own = checkpoints.keep_only(self.folder, [*self.own, checkpoint])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")
        if self.folder is not None and state.is_world_process_zero:
            with (self.folder / LIVE_LOG).open("a", encoding="utf-8") as file:
                file.write(log_line({"step": state.global_step, **logs}))


def _by_side(entry: dict[str, float]) -> dict[str, float]:
    return {name.removesuffix("_loss"): value for name, value in entry.items() if name != MEASURED}


def moments(row: dict[str, Any]) -> list[dict[str, float]]:
    """What a result row holds of its steps, in their order: what was logged, and what was measured along the way."""
    measured = [{n if n == "step" else f"{n}_loss": v for n, v in moment.items()} for moment in row["along"]]
    return sorted([*row["history"], *measured], key=lambda moment: moment["step"])


def log_line(entry: dict[str, Any]) -> str:
    """One line of `log.jsonl`, the step first."""
    return json.dumps({"step": entry["step"], **entry}) + "\n"


def _mean(times: list[float]) -> float:
    """Not the median: a penalty of every n-th step must show."""
    steady = times[WARM_UP:] or times
    return sum(steady) / max(len(steady), 1)
