"""`holdfast report`: one page of several runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import flag, option


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders that tune, demo, frontier or evaluate wrote, or results.json files."
        ),
    ],
    out: Annotated[Path, option("The page to write.", "FILE")] = Path("report.html"),
    title: Annotated[str | None, option("What stands on top of it.", "TEXT", default="the folders' names")] = None,
    as_json: Annotated[bool, flag("--json", "Print the merged results on standard output.")] = False,
) -> None:
    """Compare finished runs on one self-contained page.

    Runs that differ in their seed alone become one setting; what else differs is named. Runs of other models or other
    data get a plot of their own.

    Example: [bold]holdfast report out/plain out/held --out report.html[/bold]
    """
    from holdfast.cli.output import print_json, say
    from holdfast.errors import HoldfastError
    from holdfast.report import merging, page

    if out.is_dir():
        raise HoldfastError(f"--out {out} is a folder", wanted="a file", remedy=f"--out {out / 'report.html'}")
    page.libraries()
    parts, notes = merging.read(runs)
    results = merging.merge(parts, notes, title)
    page.write(results, out)
    if as_json:
        print_json(results)
        return
    _print(results)
    for warning in results["warnings"]:
        say(warning, strong="note: ")
    say(f"The report is in {out}")


def _print(results: dict[str, Any]) -> None:
    """A table for each group of runs that have a plain run in common."""
    from holdfast.cli.output import console
    from holdfast.cli.summary import print_rows
    from holdfast.report.comparison import compare
    from holdfast.report.words import family_name

    settings = compare(results["rows"])
    families = list(dict.fromkeys(setting.family for setting in settings))
    for family in families:
        own = [setting for setting in settings if setting.family == family]
        if len(families) > 1:
            console.print(family_name(own[0]), markup=False, highlight=False)
        print_rows({"rows": [dict(row) for setting in own for row in setting.rows]})
