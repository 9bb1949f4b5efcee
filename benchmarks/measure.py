"""What every benchmark shares: CPU time measured side by side, and one result file with machine and versions.

Times are CPU time of this process on one thread. Cases are interleaved, repeat by repeat, so that a machine which
slows down or is shared slows all of them alike; ratios are medians over repeats of time over the same repeat's
reference.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Hashable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from holdfast.files import write_json
from holdfast.machine import machine, versions

Case = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
PEERS = ("curvlinops-for-pytorch", "kronfluence", "nngeometry", "laplace-torch", "asdfghjkl")


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """`--json PATH` and `--repeats N`, with one thread set."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--repeats", type=int, default=repeats, help="of each case; the median counts")
    return parser


def interleaved(cases: dict[Name, Case], repeats: int, at_least: float = 0.0) -> dict[Name, list[float]]:
    """CPU seconds per call, `repeats` of each case, one after the other in turn.

    A repeat calls its case as often as fills `at_least` seconds and counts the mean. A first call of each is not
    counted.
    """
    calls = {name: max(1, round(at_least / max(_seconds(case, 1), 1e-9))) for name, case in cases.items()}
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            seconds[name].append(_seconds(case, calls[name]))
    return seconds


def _seconds(case: Case, calls: int) -> float:
    gc.collect()  # another case's garbage is not this one's cost
    start = time.process_time()
    for _ in range(calls):
        case()
    return (time.process_time() - start) / calls


def ratio(above: list[float], below: list[float]) -> float:
    """Median over repeats of one case's time over another's."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)


def milliseconds(seconds: list[float]) -> float:
    """The median, in ms."""
    return round(statistics.median(seconds) * 1e3, 4)


def publish(rows: list[dict[str, Any]], path: Path | None, **more: Any) -> None:
    """Write the result, or print it."""
    result = {"schema": 1, "machine": machine(), "versions": versions() | _peers(), **more, "rows": rows}
    if path is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(path, result)
        print(f"{path}: {len(rows)} rows")


def _peers() -> dict[str, str]:
    found = {}
    for library in PEERS:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
