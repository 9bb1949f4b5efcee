"""How the commands' options are declared, so that all of their help reads alike."""

from typing import Annotated, Any

import typer

DATA = "Data"  # the group of what says how data is read
DTYPES = "Load the model in auto, float32, bfloat16 or float16."


def option(
    help: str, metavar: str, panel: str | None = None, *names: str, default: str | None = None, min: int | None = None
) -> Any:
    """An option with a value.

    Args:
        help: one sentence.
        metavar: what the value is.
        panel: the group it is listed in.
        names: of the option, where they are not the parameter's.
        default: shown as the default where the parameter's own is None.
        min: the least that a number may be.
    """
    if default is not None:
        help += rf" [dim]\[default: {default}][/dim]"  # as typer writes it; the backslash keeps rich from eating it
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, min=min)


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """An option that is there or not."""
    return typer.Option(name, help=help, metavar="", rich_help_panel=panel)


def check_dtype(name: str) -> None:
    """Raise HoldfastError for a precision that models are not loaded in."""
    from holdfast.errors import HoldfastError

    known = ("auto", "float32", "bfloat16", "float16")
    if name not in known:
        raise HoldfastError(f"--dtype {name}", wanted=f"one of {', '.join(known)}; auto keeps the checkpoint's")


def _column(help: str, name: str) -> Any:
    return option(help, "NAME", DATA, name)


# Columns of the two sides' tables.
Text = Annotated[str | None, _column("Column of the target's text.", "--text-column")]
Prompt = Annotated[str | None, _column("Column of the target's prompts.", "--prompt-column")]
SourceText = Annotated[str | None, _column("Column of the source's text.", "--source-text-column")]
SourcePrompt = Annotated[str | None, _column("Column of the source's prompts.", "--source-prompt-column")]
SourceCompletion = Annotated[
    str | None, _column("Column of its completions; only they are scored.", "--source-completion-column")
]
Completion = Annotated[str | None, _column("Column of completions; only they are scored.", "--completion-column")]
