"""`holdfast anchor`: measure what moves cost, once, on old data."""

from pathlib import Path
from typing import Annotated, Any

from holdfast.cli.options import DTYPES, check_dtype, flag, option

DATA, MEASURE = "Data", "Measuring"


def anchor(
    model: Annotated[str, option("Folder or hub id of the pre-trained model.", "MODEL")],
    out: Annotated[Path, option("Folder to write the anchor to.", "DIR")],
    source: Annotated[
        str | None, option('Old data: a file, a folder, a hub id, or "self": text the model samples.', "DATA")
    ] = None,
    curvature: Annotated[str, option("Structure; holdfast methods lists them.", "KIND", MEASURE)] = "kronecker",
    targets: Annotated[
        str, option("Layers, as PEFT's target_modules; commas between names.", "LAYERS", MEASURE)
    ] = "all-linear",
    fisher: Annotated[
        str, option("Labels: sampled from the model, or the data's own (data).", "KIND", MEASURE)
    ] = "sampled",
    max_items: Annotated[int, option("Stop after this many scored tokens.", "N", MEASURE, min=1)] = 200_000,
    fraction: Annotated[float, option("Share of the positions that enter the sums.", "NUMBER", MEASURE)] = 1.0,
    length: Annotated[int, option("Tokens per sequence.", "N", MEASURE)] = 512,
    samples: Annotated[int, option("Sequences to sample for --source self.", "N", MEASURE, min=1)] = 256,
    batch_size: Annotated[int, option("Sequences per batch.", "N", MEASURE, min=1)] = 8,
    dtype: Annotated[str, option(DTYPES, "NAME", MEASURE)] = "auto",
    seed: Annotated[int, option("Of sampled labels and text.", "N", MEASURE)] = 0,
    text: Annotated[str | None, option("Column of the source's text.", "NAME", DATA, "--text-column")] = None,
    prompt: Annotated[str | None, option("Column of prompts.", "NAME", DATA, "--prompt-column")] = None,
    completion: Annotated[
        str | None, option("Column of completions; only they are scored.", "NAME", DATA, "--completion-column")
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print what was measured as JSON.")] = False,
) -> None:
    """Measure what moving each weight costs the old task, and store it: once per model, then shared.

    The identity curvature needs no --source; the others do. The columns of tables are guessed from their names.

    Example: [bold]holdfast anchor --model ./llama --source corpus.txt --out anchors/llama[/bold]
    """
    check_dtype(dtype)
    from holdfast.cli.output import print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.estimate import anchor_on
    from holdfast.recipe import DataSettings, layer_names

    data = None if source is None else DataSettings(path=source, text=text, prompt=prompt, completion=completion)
    facts: dict[str, Any] = anchor_on(
        model,
        data,
        out,
        curvature=curvature,
        targets=layer_names(targets),
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
