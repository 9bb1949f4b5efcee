"""`holdfast anchor --merge` and `--accumulate`: one anchor of several."""

from pathlib import Path
from typing import Any

import typer


def check(way: str, folders: list[Path], given: dict[str, Any], unfit: list[str]) -> None:
    """What was measured is measured: options of measuring have no meaning, and there must be anchors."""
    source = given["source"].values()
    others = [n for n, v in given.items() if n not in ("storage", "source") and v is not None]
    others += ["source"] if any(value is not None for value in source) else []
    unfit = [f"--{name.replace('_', '-')}" for name in others] + unfit
    if unfit:
        raise typer.BadParameter(
            f"it takes anchors, --out and --storage, and has no use for {', '.join(unfit)}", param_hint=way
        )
    if way == "--accumulate" and len(folders) != 2:
        raise typer.BadParameter(
            f"the anchor of the tasks before and the new task's, not {len(folders)}: --accumulate OLD NEW --out C",
            param_hint=way,
        )
    if len(folders) < 2:
        raise typer.BadParameter(f"two anchors or more, not {len(folders)}: {way} A B --out C", param_hint=way)


def write(folders: list[Path], out: Path, storage: str, decay: float | None, as_json: bool) -> None:
    """Anchors of one task after another as one; with no decay, those of different data. Told in a line or as JSON."""
    from holdfast.cli.output import print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.estimate import accumulate_on, merge_on

    if decay is None:
        facts = merge_on(folders, out, storage)
        how = f"of {len(facts['parts'])} runs"
    else:
        facts = accumulate_on(folders[0], folders[1], out, storage, decay)
        how = f"of {len(facts['tasks'])} tasks"
        if facts["approximation"]:
            say(facts["approximation"], strong="approximation: ")
    if as_json:
        print_json(facts)
    else:
        say_anchor(facts, how)


def say_anchor(facts: dict[str, Any], how: str) -> None:
    """One line on an anchor that was written."""
    from holdfast.cli.output import say

    say(
        f"Anchor of {facts['layers']} layers ({facts['curvature']}, {facts['megabytes']:.1f} MB) from "
        f"{facts['items']} {facts['item']}s {how}: {facts['out']}"
    )
