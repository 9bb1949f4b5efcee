"""`holdfast frontier`: learning against forgetting over ways of holding on, strengths and seeds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import flag, option
from holdfast.frontier.ways import NAMED, USUAL

WHAT, RUNS = "What is compared", "Runs"


def frontier(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file: base, ways, seeds; options beside it win.")
    ] = None,
    model: Annotated[str | None, option("Folder or hub id of the pre-trained model.", "MODEL", WHAT)] = None,
    target: Annotated[str | None, option("New data to learn.", "DATA", WHAT)] = None,
    source: Annotated[
        str | None, option('Old data to measure forgetting on, or "self": text the model samples.', "DATA", WHAT)
    ] = None,
    ways: Annotated[
        list[str] | None,
        option(
            f"A named way of holding on, once for each: {', '.join(NAMED)}.",
            "NAME",
            WHAT,
            "--way",
            default=", ".join(USUAL),
        ),
    ] = None,
    steps: Annotated[int | None, option("Optimizer steps of a run.", "N", WHAT, default="one epoch", min=1)] = None,
    length: Annotated[int | None, option("Tokens per sequence.", "N", WHAT, default="512")] = None,
    batch_size: Annotated[int | None, option("Sequences per batch.", "N", WHAT, default="8")] = None,
    learning_rate: Annotated[float | None, option("Peak learning rate.", "NUMBER", WHAT, default="2e-4")] = None,
    seeds: Annotated[
        int | None, option("Repeat every setting with this many seeds.", "N", WHAT, min=1, default="3")
    ] = None,
    trials: Annotated[
        int | None, option("Settings that a pareto search tries.", "N", WHAT, min=1, default="4 for each range")
    ] = None,
    out: Annotated[Path, option("Folder for results.json, report.html, runs and anchors.", "DIR")] = Path(
        "out/frontier"
    ),
    processes: Annotated[
        int | None, option("Runs at a time.", "N", RUNS, min=1, default="one per core or GPU")
    ] = None,
    storage: Annotated[
        str | None,
        option("Database that several machines share, postgresql://... say.", "URL", RUNS, default="a file in --out"),
    ] = None,
    retry: Annotated[bool, flag("--retry-failed", "Do runs again that failed.", RUNS)] = False,
    plan: Annotated[bool, flag("--plan", "List the runs and what became of them; do none.", RUNS)] = False,
    changes: Annotated[
        list[str] | None, option("Any key of the recipe: --set base.training.clip=0.5", "KEY=VALUE", None, "--set")
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print results.json on standard output.")] = False,
) -> None:
    """Compare ways of holding on: what each learns and forgets, at several strengths and seeds.

    The same command goes on after an interruption, and joins others on the same --storage: finished runs are never
    done again, killed ones go on from their last checkpoint.

    Example: [bold]holdfast frontier --model ./llama --target tickets.jsonl --source old.txt --out out/frontier[/bold]
    """
    from holdfast import recipe as recipes
    from holdfast.cli.interrupt import Interrupted
    from holdfast.errors import HoldfastError
    from holdfast.frontier.recipe import FrontierRecipe

    given: dict[str, Any] = {
        "base": {
            "model": model, "target": {"path": target}, "source": {"path": source}, "length": length,
            "training": {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate},
        },
        "ways": ways or None, "seeds": seeds, "trials": trials, "processes": processes, "storage": storage,
    }  # fmt: skip
    values = recipes.merge({} if recipe is None else recipes.load(recipe), given)
    values = recipes.override(values, changes or [])
    for key in ("model", "target", "source"):
        if key not in (values.get("base") or {}):
            raise HoldfastError(f"no {key} was named", remedy=f"pass --{key}, or a recipe that has it under base")
    settings = recipes.validate(FrontierRecipe, values)
    if plan:
        _print_plan(settings, out, as_json)
        return
    try:
        _run(settings, out, retry, as_json)
    except Interrupted as stop:
        stop.kept, stop.remedy = out, "the same command goes on from there"
        raise


def _run(settings: Any, out: Path, retry: bool, as_json: bool) -> None:
    from holdfast.cli.output import print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.cli.live_frontier import LiveFrontier
    from holdfast.cli.tables import print_frontier
    from holdfast.frontier.frontier import frontier as run

    with LiveFrontier() as live:
        results = run(settings, out, watch=live, retry=retry)
    if as_json:
        print_json(results)
        return
    print_frontier(results)
    say(f"Open {out / 'report.html'} for the plot; adapters are in {out / 'trials'}")


def _print_plan(settings: Any, out: Path, as_json: bool) -> None:
    from holdfast.cli.output import print_json
    from holdfast.cli.tables import print_plan
    from holdfast.frontier.plan import planned

    found = planned(settings, out)
    if as_json:
        print_json(found)
    else:
        print_plan(found)
