"""Progress of a study: a bar for all runs, one for each that is under way here, and a line for each that ends."""

from typing import Any, Self

from rich.text import Text

from holdfast.cli.live import progress
from holdfast.cli.output import errors
from holdfast.cli.summary import change


class LiveFrontier:
    """What a study reports to."""

    def __init__(self) -> None:
        self.progress = progress(errors)
        self.bars: dict[Any, Any] = {}
        self.total: Any = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, total: int, done: int) -> None:
        """So many runs there are, and so many were settled before: done, or failed for good."""
        before = f", {done} of them done before" if done else ""
        self.say(f"{total} runs{before}")
        self.total = self.progress.add_task("all runs", total=total, completed=done)

    def done(self, count: int) -> None:
        """So many are settled by now, by whomever."""
        self.progress.update(self.total, completed=count)

    def say(self, message: str) -> None:
        """A line above the bars."""
        self.progress.console.print(Text(message), soft_wrap=True)

    def start(self, run: Any) -> None:
        """A run has begun here."""
        self.bars[run] = self.progress.add_task(run.words, total=None)

    def step(self, run: Any, step: int, steps: int) -> None:
        """A run has come to a step."""
        self.progress.update(self.bars[run], completed=step, total=steps)

    def row(self, run: Any, row: dict[str, Any]) -> None:
        """A run is done."""
        self._end(run)
        forgotten, learned = change(row, "source") or 0.0, -(change(row, "target") or 0.0)
        self.say(f"{run.words:44s} learned {learned:.3f}  forgot {forgotten:.3f} nats/token  {row['seconds']:.0f} s")

    def failed(self, run: Any, message: str) -> None:
        """A run can't be done."""
        self._end(run)
        self.say(f"{run.words:44s} failed: {message}")

    def lost(self, run: Any) -> None:
        """A run's process died; it waits again."""
        self._end(run)
        self.say(f"{run.words:44s} its process died; it will go on from its last checkpoint")

    def _end(self, run: Any) -> None:
        self.progress.remove_task(self.bars.pop(run))
