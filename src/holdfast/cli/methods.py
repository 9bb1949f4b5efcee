"""`holdfast methods`: everything the catalogue holds."""

from typing import Annotated

from holdfast.cli.options import flag


def methods(as_json: Annotated[bool, flag("--json", "Print JSON.")] = False) -> None:
    """List every tuner, shift, curvature and penalty, with its paper.

    Example: [bold]holdfast methods --json[/bold]
    """
    from holdfast.cli.output import print_json, print_table, quiet_libraries

    quiet_libraries()
    from holdfast import catalogue

    entries = catalogue.entries()
    if as_json:
        print_json([vars(entry) for entry in entries])
        return
    rows = [[entry.room, entry.name, entry.summary, entry.paper] for entry in entries]
    print_table("What Holdfast holds", ["room", "name", "what it is", "paper"], rows)
