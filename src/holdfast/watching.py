"""What watches training: times, progress, the live log, checkpoints that are whole, and measurements along the way."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from holdfast import checkpoints, files
from holdfast.checkpoints import Run

LIVE_LOG = "log.partial.jsonl"  # one line per logged step, while it runs
MEASURED = "measured"  # in the entries of the trainer's history that hold what was measured along the way


class Watch(TrainerCallback):
    """Times the steps, passes progress on, writes the live log, and seals checkpoints."""

    def __init__(
        self,
        folder: Path | None,
        run: Run | None,
        checkpoint: Path | None,
        every: int,
        *,
        on_step: Callable[[int, int], None] | None = None,
        on_measure: Callable[[], dict[str, float]] | None = None,
        on_log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.folder, self.run, self.every = folder, run, every
        self.on_step, self.on_measure, self.on_log_entry = on_step, on_measure, on_log
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
        if self.on_log_entry is not None:
            self.on_log_entry({"step": state.global_step, **logs})
        if self.folder is not None and state.is_world_process_zero:
            with (self.folder / LIVE_LOG).open("a", encoding="utf-8") as file:
                file.write(log_line({"step": state.global_step, **logs}))


def by_side(entry: dict[str, float]) -> dict[str, float]:
    """What was measured at a step, by the names of the sides."""
    return {name.removesuffix("_loss"): value for name, value in entry.items() if name != MEASURED}


def moments(row: dict[str, Any]) -> list[dict[str, float]]:
    """What a result row holds of its steps, in their order: what was logged, and what was measured along the way."""
    found: dict[float, dict[str, float]] = {}
    for moment in row["history"]:
        found.setdefault(moment["step"], {}).update(moment)
    for moment in row["along"]:
        losses = {name if name == "step" else f"{name}_loss": value for name, value in moment.items()}
        found.setdefault(moment["step"], {}).update(losses)
    return [found[step] for step in sorted(found)]


def log_line(entry: dict[str, Any]) -> str:
    """One line of `log.jsonl`, the step first."""
    return json.dumps({"step": entry["step"], **entry}) + "\n"
