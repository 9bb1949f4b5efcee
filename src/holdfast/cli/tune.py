"""`holdfast tune`: fine-tune with few parameters and hold on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import DATA, Prompt, SourceCompletion, SourcePrompt, SourceText, Text, flag, option

HOLD, TRAIN, MORE = "Holding on", "Training", "Output"


def tune(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file of settings; options given beside it win.")
    ] = None,
    model: Annotated[str | None, option("Folder or hub id of the pre-trained model.", "MODEL")] = None,
    target: Annotated[
        str | None, option("New data to learn: a text, .jsonl, .csv or .parquet file, a folder, or a hub id.", "DATA")
    ] = None,
    out: Annotated[Path, option("Folder for the adapter, results.json and report.html.", "DIR")] = Path("out"),
    anchor: Annotated[
        list[Path] | None,
        option(
            "Hold on in weight space: a folder that holdfast anchor wrote; several add up (forecasts: their mean).",
            "DIR",
            HOLD,
        ),
    ] = None,
    anchor_weights: Annotated[
        list[float] | None,
        option("How much each anchor counts.", "NUMBER", HOLD, "--anchor-weight", default="1 each"),
    ] = None,
    curvature: Annotated[
        str | None, option("Measure an anchor in this run, on --source: its structure.", "KIND", HOLD)
    ] = None,
    space: Annotated[
        str | None,
        option(
            'What it is measured of: the base "weights", or what the "adapter" trains.',
            "SPACE",
            HOLD,
            default="weights",
        ),
    ] = None,
    forecast: Annotated[
        Path | None,
        option("An anchor that only forecasts; samples-joint stays true under a penalty.", "DIR", HOLD),
    ] = None,
    strength: Annotated[float | None, option("Weight of the anchor's penalty.", "NUMBER", HOLD, default="1")] = None,
    budget: Annotated[
        list[str] | None,
        option(
            "Accepted forgetting, instead of a strength: 0.02 (nats per source token), 1% (of perplexity), 'loss 1%', "
            "'accuracy 0.5' (points); once, or once for each anchor.",
            "BUDGET",
            HOLD,
        ),
    ] = None,
    damping: Annotated[
        float | None, option("Share of the mean curvature added to the anchor's.", "NUMBER", HOLD, default="0")
    ] = None,
    source: Annotated[
        str | None, option('Old data to measure forgetting on, or "self": text the model samples.', "DATA", HOLD)
    ] = None,
    distill: Annotated[
        float | None,
        option("Hold on in function space: weight of distilling --source.", "NUMBER", HOLD, default="0"),
    ] = None,
    method: Annotated[str | None, option("Tuner; holdfast methods lists them.", "NAME", TRAIN, default="lora")] = None,
    rank: Annotated[int | None, option("Rank of the adapter.", "N", TRAIN, default="8")] = None,
    parameters: Annotated[
        str | None,
        option("How many may train, 0.5% of the model's or a number; sets the method's size.", "AMOUNT", TRAIN),
    ] = None,
    targets: Annotated[
        str | None,
        option("Layers, as PEFT's target_modules; commas between names.", "LAYERS", TRAIN, default="all-linear"),
    ] = None,
    steps: Annotated[int | None, option("Optimizer steps.", "N", TRAIN, default="as many as --epochs takes")] = None,
    epochs: Annotated[float | None, option("Passes over the target data.", "NUMBER", TRAIN, default="1")] = None,
    batch_size: Annotated[int | None, option("Sequences per batch.", "N", TRAIN, default="8")] = None,
    accumulate: Annotated[int | None, option("Batches per optimizer step.", "N", TRAIN, default="1")] = None,
    learning_rate: Annotated[float | None, option("Peak learning rate.", "NUMBER", TRAIN, default="2e-4")] = None,
    length: Annotated[int | None, option("Tokens per sequence.", "N", TRAIN, default="512")] = None,
    seed: Annotated[int | None, option("Of start, order and sampled text.", "N", TRAIN, default="0")] = None,
    eval_steps: Annotated[
        int | None, option("Measure both sides every N steps.", "N", TRAIN, default="0, before and after only")
    ] = None,
    save_steps: Annotated[
        int | None, option("A checkpoint every N steps, for --resume.", "N", TRAIN, default="0, none")
    ] = None,
    resume: Annotated[bool, flag("--resume", "Go on from the last checkpoint in --out.", TRAIN)] = False,
    text: Text = None,
    prompt: Prompt = None,
    completion: Annotated[
        str | None, option("Column of completions; only they are learned.", "NAME", DATA, "--completion-column")
    ] = None,
    source_text: SourceText = None,
    source_prompt: SourcePrompt = None,
    source_completion: SourceCompletion = None,
    changes: Annotated[
        list[str] | None, option("Any key of the recipe: --set tuner.dropout=0.1", "KEY=VALUE", None, "--set")
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print results.json on standard output.")] = False,
) -> None:
    """Fine-tune a causal language model, hold on to what it knew, and measure both.

    --budget says how much may be forgotten; --strength and --distill say how hard to hold on. With none of them it is
    plain fine-tuning. Columns are guessed from their names.

    Example: [bold]holdfast tune --model ./llama --target tickets.jsonl --source old.txt --budget 1% --out out[/bold]
    """
    from holdfast import recipe as recipes
    from holdfast.cli.interrupt import Interrupted
    from holdfast.errors import HoldfastError
    from holdfast.tune_recipe import TuneRecipe

    given: dict[str, Any] = {
        "model": model, "anchor": [str(folder) for folder in anchor or []] or None,
        "forecast": None if forecast is None else str(forecast),
        "anchor_weights": anchor_weights or None, "curvature": curvature, "space": space,
        "strength": strength, "damping": damping, "budget": budget or None,
        "distill": distill, "method": method, "rank": rank, "parameters": parameters, "length": length, "seed": seed,
        "targets": targets,
        "training": {
            "steps": steps, "epochs": epochs, "batch_size": batch_size, "accumulate": accumulate,
            "learning_rate": learning_rate, "save_steps": save_steps, "eval_steps": eval_steps,
        },
        "target": {"path": target, "text": text, "prompt": prompt, "completion": completion},
        "source": {"path": source, "text": source_text, "prompt": source_prompt, "completion": source_completion},
    }  # fmt: skip
    values = recipes.merge({} if recipe is None else recipes.load(recipe), given)
    values = recipes.override(values, changes or [])
    held = values.get("anchor") or values.get("curvature")
    if not held and (strength is not None or damping is not None):
        raise HoldfastError(
            "--strength and --damping weigh an anchor, and none is named",
            remedy="pass --anchor DIR, measure one with --curvature kronecker --source DATA, "
            "or hold on with --source self --distill WEIGHT",
        )
    for key in ("model", "target"):
        if key not in values:
            raise HoldfastError(f"no {key} was named", remedy=f"pass --{key}, or a recipe that has it")
    settings = recipes.validate(TuneRecipe, values)
    try:
        _run(settings, out, resume, as_json, () if rank is None else ("rank",))
    except Interrupted as stop:
        stop.kept, stop.remedy = _how_to_go_on(out, settings.training.save_steps)
        raise


def _run(settings: Any, out: Path, resume: bool, as_json: bool, said: tuple[str, ...]) -> None:
    from holdfast.cli.output import errors, print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.cli.summary import print_rows
    from holdfast.tune import tune as run
    from holdfast.tuning_method import tuner_of

    tuner_of(settings, said)

    if errors.is_terminal:
        from holdfast.cli.live_training import LiveTraining

        with LiveTraining() as live:
            results = run(settings, out, resume=resume, say=say, on_step=live.step, on_log=live.log)
    else:
        results = run(settings, out, resume=resume, say=say)
    if as_json:
        print_json(results)
        return
    print_rows(results)
    kind = "Adapter" if (out / "adapter").is_dir() else "The tuned model"
    say(f"{kind}, results.json and report.html are in {out}")


def _how_to_go_on(out: Path, save_steps: int) -> tuple[Path | None, str]:
    """Where the last checkpoint is, and what to do next."""
    from holdfast import checkpoints

    found = checkpoints.whole(out)
    if found:
        return found[-1], f"the same command with --resume goes on from step {checkpoints.step(found[-1])}"
    if save_steps:
        return None, "start again: the first checkpoint was not reached"
    return None, "start again; --save-steps N writes a checkpoint every N steps, from which --resume goes on"
