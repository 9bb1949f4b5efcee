"""The table a terminal shows while a run trains."""

import io

from rich.console import Console

from holdfast.cli import live_training
from holdfast.cli.live_training import SHOWN, LiveTraining


def test_the_last_steps_and_only_what_was_logged(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(live_training, "errors", Console(file=screen, force_terminal=True, width=100))
    with LiveTraining() as live:
        for step in range(1, 13):
            live.log({"step": step, "loss": 3.0 - step / 10, "strength": 2.0 * step})
            if step == 12:
                live.log({"step": step, "loss": 1.8, "measured_forgetting": 0.0123})
            live.step(step, 12)
    shown = Console(file=io.StringIO(), width=100)
    with shown.capture() as capture:
        shown.print(live.table())
    text = capture.get()
    assert "task loss" in text
    assert "measured" in text
    assert "0.0123" in text
    assert "corrected" not in text
    assert len(live.rows) == SHOWN
    assert "12/12" in screen.getvalue()
