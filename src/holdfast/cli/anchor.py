"""`holdfast anchor`: measure what moves cost, once, on old data; or put together what was measured apart."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import anchor_together as together
from holdfast.cli.options import DATA, flag, option

MEASURE, SCALE, MORE = "Measuring", "Scale", "Output"


def anchor(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file of settings; options beside it win. With --merge or --accumulate, anchors.",
        ),
    ] = None,
    model: Annotated[str | None, option("Folder or hub id of the pre-trained model.", "MODEL")] = None,
    out: Annotated[Path | None, option("Folder to write the anchor to.", "DIR")] = None,
    source: Annotated[
        str | None, option('Old data: a file, a folder, a hub id, or "self": text the model samples.', "DATA")
    ] = None,
    merge: Annotated[bool, flag("--merge", "Merge anchors of different data: --merge A B --out C.")] = False,
    accumulate: Annotated[
        bool, flag("--accumulate", "Add a new task's anchor to the tasks before: --accumulate OLD NEW --out C.")
    ] = False,
    decay: Annotated[
        float | None, option("How much the tasks before count, with --accumulate.", "NUMBER", default="1")
    ] = None,
    plan: Annotated[bool, flag("--plan", "Only print what it would take; a config.json is enough.", SCALE)] = False,
    memory: Annotated[
        str | None, option("Budget of the sums, 4GiB say: wide layers are kept in less.", "AMOUNT", SCALE)
    ] = None,
    factors: Annotated[
        str | None,
        option("Keep wide sides as blocks:N, low-rank:K or diagonal.", "STRUCTURE", SCALE, default="full"),
    ] = None,
    offload: Annotated[
        str | None, option("Keep running sums in the memory of the CPU, or on disk.", "cpu|disk", SCALE)
    ] = None,
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard", help="Under torchrun, each layer's sums on one rank.", rich_help_panel=SCALE
        ),
    ] = None,
    until: Annotated[
        float | None, option("Stop when prices are known to this share, 0.02 say.", "NUMBER", MEASURE)
    ] = None,
    resume: Annotated[bool, flag("--resume", "Go on with what was interrupted.", MEASURE)] = False,
    curvature: Annotated[
        str | None, option("Structure; holdfast methods lists them.", "KIND", MEASURE, default="kronecker")
    ] = None,
    targets: Annotated[
        str | None,
        option("Layers, as PEFT's target_modules; commas between names.", "LAYERS", MEASURE, default="all-linear"),
    ] = None,
    fisher: Annotated[
        str | None,
        option("Labels: sampled, the data's own (data), or all of a few (exact).", "KIND", MEASURE, default="sampled"),
    ] = None,
    draws: Annotated[int | None, option("Sampled labels of each item.", "N", MEASURE, default="1")] = None,
    per: Annotated[
        str | None,
        option(
            "What is squared: each token's gradient, or a sequence's.",
            "token|sequence",
            MEASURE,
            default="as suits KIND",
        ),
    ] = None,
    keep: Annotated[
        int | None, option("Examples that stored-sample curvatures keep.", "N", MEASURE, default="256")
    ] = None,
    max_items: Annotated[
        int | None,
        option(
            "Stop after the batch in which so many tokens are scored.",
            "N",
            MEASURE,
            default="200000; with --until, all",
        ),
    ] = None,
    fraction: Annotated[
        float | None, option("Share of the positions that enter the sums.", "NUMBER", MEASURE, default="1")
    ] = None,
    length: Annotated[int | None, option("Tokens per sequence.", "N", MEASURE, default="512")] = None,
    samples: Annotated[
        int | None, option("Sequences to sample for --source self.", "N", MEASURE, default="256")
    ] = None,
    batch_size: Annotated[int | None, option("Sequences per batch.", "N", MEASURE, default="8")] = None,
    dtype: Annotated[
        str | None, option("Load the model in auto, float32, bfloat16 or float16.", "NAME", MEASURE, default="auto")
    ] = None,
    seed: Annotated[int | None, option("Of sampled labels and text.", "N", MEASURE, default="0")] = None,
    storage: Annotated[
        str | None, option("Of the file: float32, or bfloat16 in half the space.", "NAME", SCALE, default="float32")
    ] = None,
    text: Annotated[str | None, option("Column of the source's text.", "NAME", DATA, "--text-column")] = None,
    prompt: Annotated[str | None, option("Column of prompts.", "NAME", DATA, "--prompt-column")] = None,
    completion: Annotated[
        str | None, option("Column of completions; only they are scored.", "NAME", DATA, "--completion-column")
    ] = None,
    changes: Annotated[
        list[str] | None, option("Any key of the recipe: --set products=bfloat16", "KEY=VALUE", None, "--set")
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print what was measured as JSON.")] = False,
) -> None:
    """Measure what moving each weight costs the old task, and store it: once per model, then shared.

    The identity curvature needs no --source; the others do. The columns of tables are guessed from their names.

    Example: [bold]holdfast anchor --model ./llama --source corpus.txt --out anchors/llama[/bold]
    """
    given: dict[str, Any] = {
        "model": model, "curvature": curvature, "targets": targets, "fisher": fisher, "draws": draws, "per": per,
        "keep": keep, "max_items": max_items, "fraction": fraction, "length": length, "samples": samples,
        "batch_size": batch_size, "dtype": dtype, "seed": seed, "storage": storage, "memory": memory,
        "factors": factors, "offload": offload, "shard": shard, "until": until,
        "source": {"path": source, "text": text, "prompt": prompt, "completion": completion},
    }  # fmt: skip
    if merge or accumulate:
        asked = {
            "--decay": merge and decay is not None, "--plan": plan, "--resume": resume, "--set": changes,
            "--accumulate": merge and accumulate,
        }  # fmt: skip
        folders, unfit = paths or [], [name for name, given_too in asked.items() if given_too]
        together.check("--merge" if merge else "--accumulate", folders, given, unfit)
        target, file = _required(out), storage or "float32"
        together.write(folders, target, file, None if merge else 1.0 if decay is None else decay, as_json)
        return
    if decay is not None:
        raise typer.BadParameter("it weighs the tasks before a new one: --accumulate OLD NEW", param_hint="--decay")
    settings = _settings(paths or [], given, changes or [])
    if plan:
        _plan(settings, as_json)
    else:
        _measure(settings, _required(out), resume, as_json)


def _settings(paths: list[Path], given: dict[str, Any], changes: list[str]) -> Any:
    """The validated recipe."""
    from holdfast import recipe as recipes
    from holdfast.anchors.recipe import AnchorRecipe
    from holdfast.errors import HoldfastError

    if len(paths) > 1:
        raise typer.BadParameter(f"one at most, not {len(paths)}; --merge takes several anchors", param_hint="RECIPE")
    values = recipes.override(recipes.merge(recipes.load(paths[0]) if paths else {}, given), changes)
    if "model" not in values:
        raise HoldfastError("no model was named", remedy="pass --model, or a recipe that has it")
    return recipes.validate(AnchorRecipe, values)


def _required(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("name the folder to write the anchor to", param_hint="--out")
    return out


def _plan(settings: Any, as_json: bool) -> None:
    from holdfast.cli.output import print_json, quiet_libraries

    quiet_libraries()
    from holdfast.cli import anchor_plan
    from holdfast.estimate import planned
    from holdfast.plan import choices

    chosen, shapes = planned(settings)
    others = choices(shapes, chosen.reading)
    if as_json:
        print_json(anchor_plan.as_data(chosen, others))
    else:
        anchor_plan.print_plan(chosen, settings.storage, others)


def _measure(settings: Any, out: Path, resume: bool, as_json: bool) -> None:
    """Under torchrun all processes measure, and the first one writes and prints."""
    from holdfast.cli.interrupt import Interrupted
    from holdfast.cli.output import print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.cli import anchor_plan
    from holdfast.estimate import anchor_on, check, partial, planned
    from holdfast.processes import group

    with group() as first:
        check(settings)
        if first and settings.memory is not None:
            anchor_plan.show(planned(settings)[0], settings.storage)
        try:
            facts = anchor_on(settings, out, resume=resume, first=first, say=say if first else _silence)
        except Interrupted as stop:
            if any(partial(out).glob("pass-*")):
                stop.kept = partial(out)
                stop.remedy = "the same command with --resume goes on from where it was"
            raise
    if not first:
        return
    if as_json:
        print_json(facts)
        return
    together.say_anchor(facts, f"in {facts['seconds']:.1f} s")
    if held := facts["captured"]:
        say(
            f"Sketches hold {held['mean']:.0%} of the traces along directions, the rest by its diagonal alone (least: "
            f"{held['least']:.0%}, {held['side']} of {held['layer']})"
        )
    if settings.until is not None and (facts["agreement"] or 1) <= settings.until:  # else a note has said why not
        say(f"Known to {facts['agreement']:.3f} along its leading directions ({settings.until} asked for)")
    say(f"Use it: holdfast tune --model {settings.model} --target DATA {_use(settings.curvature, out)} --out OUT")


def _use(curvature: str, out: Path) -> str:
    """The options by which an anchor of that kind does what it is good at."""
    from holdfast import catalogue

    kind = catalogue.curvature(curvature)
    if not kind.holds:
        return f"--anchor ANOTHER --forecast {out}"
    form = "" if kind.squares else f" --set form={curvature}"
    return f"--anchor {out} --strength 4{form}"


def _silence(message: str) -> None:
    """What other processes say: the first one says it."""
