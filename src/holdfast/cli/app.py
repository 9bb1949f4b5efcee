"""The commands, gathered."""

import typer

from holdfast.cli.analyse import app as analyse
from holdfast.cli.anchor import anchor
from holdfast.cli.combine import combine
from holdfast.cli.demo import demo
from holdfast.cli.evaluate import evaluate
from holdfast.cli.export import export
from holdfast.cli.fit import fit
from holdfast.cli.frontier import frontier
from holdfast.cli.methods import methods
from holdfast.cli.report import report
from holdfast.cli.tune import tune

app = typer.Typer(
    name="holdfast",
    help="Fine-tune any pre-trained model with few parameters, and keep what it already knew.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
app.command()(demo)
app.command()(anchor)
app.command()(tune)
app.command()(fit)
app.command()(combine)
app.command()(export)
app.command()(evaluate)
app.command()(frontier)
app.command()(report)
app.command()(methods)
app.add_typer(analyse)


def _version(shown: bool) -> None:
    if shown:
        from holdfast import __version__

        print(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    return
