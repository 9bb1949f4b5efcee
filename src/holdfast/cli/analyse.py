"""`holdfast analyse`: what can be seen of a model and an adapter, gathered; one file per analysis."""

import typer

from holdfast.cli.analyse_calibration import calibration
from holdfast.cli.analyse_landscape import landscape
from holdfast.cli.analyse_pac_bayes import pac_bayes
from holdfast.cli.analyse_sparsity import sparsity

app = typer.Typer(
    name="analyse",
    help="Look into a model and its adapter: each analysis leaves figures, a page, a picture and what they say.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

app.command()(landscape)
app.command()(sparsity)
app.command()(calibration)
app.command()(pac_bayes)


@app.callback()
def _analyse() -> None:
    return
