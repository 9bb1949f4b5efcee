"""What all analyses are asked and how they answer: their common options, and their end."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from holdfast.cli.options import DTYPES, check_dtype, flag, option

if TYPE_CHECKING:
    from holdfast.analysis.leaving import Finding
    from holdfast.analysis.subject import Asked

SUBJECT = "What is analysed"

Model = Annotated[
    str | None, option("Folder or hub id of the pre-trained model.", "MODEL", SUBJECT, default="the shipped one")
]
Source = Annotated[
    str | None, option('Old data, or "self".', "DATA", SUBJECT, default="the shipped documentation prose")
]
Target = Annotated[str | None, option("New data.", "DATA", SUBJECT, default="the shipped Python code")]
Adapter = Annotated[Path | None, option("A PEFT adapter of the model (OUT/adapter).", "DIR", SUBJECT)]
Length = Annotated[int, option("Tokens per sequence.", "N", SUBJECT, min=2)]
Dtype = Annotated[str, option(DTYPES, "NAME", SUBJECT)]
Seed = Annotated[int, option("Of everything random.", "N")]
AsJson = Annotated[bool, flag("--json", "Print the figures, as the JSON file holds them, on standard output.")]


def out_option(name: str) -> Any:
    """--out of one analysis."""
    return option(f"Folder for {name}.json, {name}.html and {name}.svg.", "DIR")


def run(out: Path, asked: dict[str, Any], analyse: "Callable[[Asked], Finding]", as_json: bool) -> None:
    """Analyse, leave the files, and say what was found; what can be refused before work is refused.

    Args:
        out: the folder; no empty one stays behind a failure.
        asked: what `analysis.subject.Asked` takes.
        analyse: what imports the heavy libraries and does the work.
        as_json: print the JSON file's content instead of words.
    """
    from holdfast.cli.output import console, print_json, print_table, quiet_libraries, say

    check_dtype(asked.get("dtype", "auto"))
    quiet_libraries()
    from holdfast.analysis.leaving import leave, require_drawing
    from holdfast.analysis.subject import Asked
    from holdfast.files import output_folder

    require_drawing()
    with output_folder(out):
        finding = analyse(Asked(**asked))
        content = leave(finding, out)
    if as_json:
        print_json(content)
        return
    for table in finding.tables:
        print_table(table.title, table.header, table.rows, right=table.right)
    for warning in finding.warnings:
        say(warning, strong="note: ")
    console.print(finding.words, highlight=False, markup=False, soft_wrap=True)
    name = finding.name
    say(f"\nOpen {out / name}.html; the figures are in {name}.json, the picture is {name}.svg.")
