"""`holdfast anchor`: measure what moves cost, once, on old data."""

from pathlib import Path
from typing import Annotated, Any

import typer


def anchor(
    model: Annotated[str, typer.Option("--model", help="Folder or hub id of the pre-trained model.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the anchor to.")],
    source: Annotated[
        str | None, typer.Option("--source", help='Old data: a file, a folder, a hub id, or "self" (sampled text).')
    ] = None,
    curvature: Annotated[str, typer.Option(help="Structure; see holdfast methods.")] = "kronecker",
    targets: Annotated[
        str, typer.Option(help="Layers, as PEFT's target_modules; several with commas.")
    ] = "all-linear",
    fisher: Annotated[str, typer.Option(help="Labels: sampled from the model, or the data's own.")] = "sampled",
    max_items: Annotated[int, typer.Option(help="Stop after this many scored tokens.")] = 200_000,
    fraction: Annotated[float, typer.Option(help="Share of the positions that enter the sums.")] = 1.0,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    samples: Annotated[int, typer.Option(help="Sequences to sample for --source self.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Sequences per batch.")] = 8,
    text: Annotated[str | None, typer.Option("--text-column", help="Column of the source's text.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt-column", help="Column of prompts.")] = None,
    completion: Annotated[str | None, typer.Option("--completion-column", help="Column of completions.")] = None,
    dtype: Annotated[str, typer.Option(help="Load the model in: auto, float32, bfloat16, float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of sampled labels and text.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the curvature of the old task at the pre-trained weights and store it.

    Example: [bold]holdfast anchor --model ./llama --source corpus.txt --out anchors/llama[/bold]
    """
    from holdfast.cli.output import print_json, quiet_libraries, say
    from holdfast.estimate import anchor_on
    from holdfast.recipe import DataSettings

    quiet_libraries()
    data = None if source is None else DataSettings(path=source, text=text, prompt=prompt, completion=completion)
    chosen = [part.strip() for part in targets.split(",")] if "," in targets else targets
    facts: dict[str, Any] = anchor_on(
        model,
        data,
        out,
        curvature=curvature,
        targets=chosen,
        fisher=fisher,
        max_items=max_items,
        fraction=fraction,
        length=length,
        samples=samples,
        batch_size=batch_size,
        dtype=dtype,
        seed=seed,
        say=say,
    )
    if as_json:
        print_json(facts)
        return
    say(
        f"Anchor of {facts['layers']} layers ({facts['curvature']}, {facts['megabytes']:.1f} MB) from "
        f"{facts['items']} {facts['item']}s in {facts['seconds']:.1f} s: {out}"
    )
    say(f"Use it: holdfast tune --model {model} --target DATA --anchor {out} --strength 1 --out OUT")
