"""`holdfast methods`: everything the catalogue holds."""

from dataclasses import asdict
from typing import Annotated

from holdfast.cli.options import flag


def methods(as_json: Annotated[bool, flag("--json", "Print JSON.")] = False) -> None:
    """List every tuner, shift, curvature and penalty, with its paper, and the tuners' own options.

    Example: [bold]holdfast methods --json[/bold]
    """
    from holdfast.cli.output import print_json, print_table, quiet_libraries

    quiet_libraries()
    from holdfast import catalogue
    from holdfast.tuners.options import written

    entries = catalogue.entries()
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [[entry.room, entry.name, entry.summary, entry.paper] for entry in entries]
    print_table("What Holdfast holds", ["room", "name", "what it is", "paper"], rows)
    options = [
        [
            entry.name,
            _key(option.name),
            written(option.default),
            option.what + " (--parameters sets it)" * option.sizes,
        ]
        for entry in entries
        for option in entry.options
    ]
    print_table("Options of the tuners, in recipes and for --set", ["tuner", "key", "default", "what it is"], options)


def _key(name: str) -> str:
    from holdfast.tuners.options import PART, TOP

    return name if name in TOP else PART + name
