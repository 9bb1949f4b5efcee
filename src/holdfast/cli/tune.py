"""`holdfast tune`: fine-tune with few parameters and hold on."""

from pathlib import Path
from typing import Annotated, Any

import typer


def tune(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe; options given beside it win.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the pre-trained model.")] = None,
    target: Annotated[str | None, typer.Option(help="New data: a file, a folder, or a hub id.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write adapter, results and report to.")] = Path("out"),
    anchor: Annotated[Path | None, typer.Option(help="Anchor folder: hold on in weight space.")] = None,
    strength: Annotated[float | None, typer.Option(help="Of the anchor's penalty. Default: 1.")] = None,
    damping: Annotated[float | None, typer.Option(help="Share of the mean curvature added. Default: 0.")] = None,
    source: Annotated[
        str | None, typer.Option(help='Old data to measure forgetting and to distil on, or "self".')
    ] = None,
    distill: Annotated[
        float | None, typer.Option(help="Weight of the distillation: hold on in function space. [0]")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Tuner; see holdfast methods. Default: lora.")] = None,
    rank: Annotated[int | None, typer.Option(help="Adapter rank. Default: 8.")] = None,
    targets: Annotated[str | None, typer.Option(help="Layers, as PEFT's target_modules. Default: all-linear.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: one epoch.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the target data. Default: 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per batch. Default: 8.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Gradient accumulation steps. Default: 1.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate. Default: 2e-4.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence. Default: 512.")] = None,
    save_steps: Annotated[int | None, typer.Option(help="Checkpoint every so many steps. Default: 0: none.")] = None,
    text: Annotated[str | None, typer.Option("--text-column", help="Column of the target's text.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt-column", help="Column of the target's prompts.")] = None,
    completion: Annotated[
        str | None, typer.Option("--completion-column", help="Column of completions; the loss is on them alone.")
    ] = None,
    source_text: Annotated[
        str | None, typer.Option("--source-text-column", help="Column of the source's text.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and sampled text. Default: 0.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Any recipe key: training.clip=0.5")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Fine-tune a causal language model, hold on to what it knew, and measure both.

    Example: [bold]holdfast tune --model ./llama --target tickets.jsonl --source self --distill 0.3 --out out[/bold]
    """
    from holdfast import recipe as recipes
    from holdfast.cli.output import print_json, quiet_libraries, say
    from holdfast.cli.summary import print_rows
    from holdfast.errors import HoldfastError
    from holdfast.tune import tune as run

    values: dict[str, Any] = recipes.load(recipe) if recipe is not None else {}
    given: dict[str, Any] = {
        "model": model, "anchor": None if anchor is None else str(anchor), "strength": strength, "damping": damping,
        "distill": distill, "method": method, "rank": rank, "length": length, "seed": seed,
        "targets": targets.split(",") if targets and "," in targets else targets,
    }  # fmt: skip
    training = {
        "steps": steps, "epochs": epochs, "batch_size": batch_size, "accumulate": accumulate,
        "learning_rate": learning_rate, "save_steps": save_steps,
    }  # fmt: skip
    new = {"path": target, "text": text, "prompt": prompt, "completion": completion}
    old = {"path": source, "text": source_text}
    for key, part in (("training", training), ("target", new), ("source", old)):
        given[key] = {**(values.get(key) or {}), **_present(part)} or None
    values = recipes.override({**values, **_present(given)}, changes or [])
    for key in ("model", "target"):
        if key not in values:
            raise HoldfastError(f"no {key} was named", remedy=f"pass --{key}, or a recipe that has it")
    settings = recipes.validate(recipes.TuneRecipe, values)
    quiet_libraries()
    results = run(settings, out, resume=resume, say=say)
    if as_json:
        print_json(results)
        return
    print_rows(results)
    say(f"Adapter, results.json and report.html are in {out}")


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
