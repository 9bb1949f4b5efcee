"""The bar of scored items: how many there will be, how fast, and nothing where nobody looks."""

import io
from typing import Any

import pytest
import tqdm.auto

from holdfast import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show: every update of the bar."""
    shown = io.StringIO()
    plain = tqdm.auto.tqdm

    def always(**options: Any) -> Any:
        options |= {"file": shown, "disable": bool(options["disable"]), "mininterval": 0, "dynamic_ncols": False}
        return plain(**options)

    monkeypatch.setattr(tqdm.auto, "tqdm", always)
    return shown


def shown_after(screen: io.StringIO, counts: list[int], **options: Any) -> str:
    """The bar after batches of so many items."""
    with progress.counted("anchor", options.pop("batches", None), **options) as advance:
        for count in counts:
            advance(count)
        return screen.getvalue().split("\r")[-1]


@pytest.mark.parametrize(
    ("counts", "options", "says"),
    [
        ([10, 30], {"batches": 4, "unit": "token"}, ["50%", "40.0/80.0", "token/s"]),  # 20 a batch so far
        ([10, 30], {"batches": 4, "limit": 50}, ["80%", "40.0/50.0", "item/s"]),
        ([10, 30], {"limit": 30}, ["100%", "40.0/40.0"]),  # the last batch ran over
        ([10], {"batches": 4, "before": 10}, ["40%", "20.0/50.0"]),
        ([10, 30], {}, ["40.0item"]),
    ],
)
def test_what_is_shown(screen: io.StringIO, counts: list[int], options: dict[str, Any], says: list[str]) -> None:
    last = shown_after(screen, counts, **options)
    assert [part for part in says if part not in last] == [], last
    assert ("<" in last) == bool({"batches", "limit"} & set(options))  # time left


def test_nothing_where_nobody_looks(screen: io.StringIO) -> None:
    assert shown_after(screen, [10, 30], batches=4, shown=False) == ""
