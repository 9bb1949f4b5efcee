"""`holdfast export`: adapters in forms that need no Holdfast."""

from pathlib import Path
from typing import Annotated

from holdfast.cli.options import DTYPES, check_dtype, flag, option


def export(
    adapter: Annotated[Path, option("A finished adapter; it is left alone.", "DIR")],
    out: Annotated[Path, option("Folder to write.", "DIR")],
    to: Annotated[
        str, option("shira: an adapter that stock PEFT loads (of SIFT adapters); merged: a whole model.", "FORM")
    ] = "merged",
    model: Annotated[str | None, option("The base model; default: what the adapter names.", "MODEL")] = None,
    dtype: Annotated[str, option(DTYPES + " As in training.", "NAME")] = "auto",
    as_json: Annotated[bool, flag("--json", "Print what was done on standard output.")] = False,
) -> None:
    """Write a finished adapter in a form that other people load without Holdfast.

    Example: [bold]holdfast export --adapter out/adapter --model MODEL --to shira --out exported[/bold]
    """
    from holdfast.cli.output import print_json, quiet_libraries, say

    check_dtype(dtype)
    quiet_libraries()
    from holdfast.export import export as run

    done = run(adapter, to, out, model, dtype)
    if as_json:
        print_json(done)
        return
    sizes = {name: value for name, value in done.items() if isinstance(value, int) and name != "schema"}
    say(f"{', '.join(f'{value:,} {name}' if value > 99 else f'{name} {value}' for name, value in sizes.items())}")
    say(f"{adapter} is in {out} as {to}")
