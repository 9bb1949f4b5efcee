"""Progress of several runs at once, and a line for each that has finished."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from holdfast.cli.output import errors
from holdfast.cli.summary import change


def progress(console: Console) -> Progress:
    """Bars with counts and times."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class LiveRows:
    """What a comparison reports to: preparations, steps and finished rows."""

    def __init__(self) -> None:
        self.progress = progress(errors)
        self.names: list[str] = []
        self.bars: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, names: list[str]) -> None:
        """The runs that will come."""
        self.names = names
        self.total = self.progress.add_task("all runs", total=len(names))

    def say(self, message: str) -> None:
        """A line above the bars."""
        self.progress.console.print(Text(message), soft_wrap=True)

    def step(self, job: int, step: int, steps: int) -> None:
        """A run has come to a step."""
        if job not in self.bars:
            self.bars[job] = self.progress.add_task(self.names[job], total=steps)
        self.progress.update(self.bars[job], completed=step, total=steps)

    def row(self, job: int, row: dict[str, Any]) -> None:
        """A run has finished."""
        if job in self.bars:
            self.progress.remove_task(self.bars.pop(job))
        self.progress.advance(self.total)
        forgotten, learned = change(row, "source") or 0.0, -(change(row, "target") or 0.0)
        self.say(
            f"{self.names[job]:36s} learned {learned:.3f}  forgot {forgotten:.3f} nats/token  {row['seconds']:.0f} s"
        )
