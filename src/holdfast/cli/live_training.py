"""The table that a terminal shows while a run trains: the last logged steps, and what holds on."""

from collections import deque
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from holdfast.cli.output import errors

SHOWN = 8  # logged steps
COLUMNS = {  # what a step logs -> its heading; shown once any step has it
    "loss": "task loss",
    "penalty": "penalty",
    "distill_kl": "divergence",
    "strength": "strength",
    "predicted_forgetting": "forecast",
    "calibrated_forecast": "corrected",
    "measured_forgetting": "measured",
    "source_loss": "source",
    "target_loss": "target",
}


class LiveTraining:
    """A bar of the steps over a table of what they logged; it leaves its last state standing."""

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=SHOWN)
        self.known: dict[str, None] = {}
        self.progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
        )
        self.task: Any = None
        self.live = Live(self._drawn(), console=errors, auto_refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def step(self, step: int, steps: int) -> None:
        """A step has ended."""
        if self.task is None:
            self.task = self.progress.add_task("train", total=steps)
            self.live.start()
        self.progress.update(self.task, completed=step, total=steps)
        self.live.update(self._drawn(), refresh=True)
        if step == steps:
            self.live.stop()  # what is measured afterwards has bars of its own

    def log(self, entry: dict[str, float]) -> None:
        """A step has logged."""
        self.rows.append(entry)
        self.known |= {name: None for name in COLUMNS if name in entry}

    def _drawn(self) -> Group:
        return Group(self.table(), self.progress)

    def table(self) -> Table:
        """The last steps; figures that a step did not log are blank."""
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("step", justify="right")
        shown = [name for name in COLUMNS if name in self.known]
        for name in shown:
            table.add_column(COLUMNS[name], justify="right")
        for row in self.rows:
            table.add_row(str(int(row["step"])), *(f"{row[name]:.4g}" if name in row else "" for name in shown))
        return table
