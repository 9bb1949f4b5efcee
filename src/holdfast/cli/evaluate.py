"""`holdfast evaluate`: losses of a model, with and without an adapter."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Option(help="Folder or hub id of the pre-trained model.")],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder, OUT/adapter for instance.")] = None,
    source: Annotated[str | None, typer.Option(help="Old data: what should have been kept.")] = None,
    target: Annotated[str | None, typer.Option(help="New data: what should have been learned.")] = None,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    max_items: Annotated[int, typer.Option(help="Stop after this many scored tokens per side.")] = 200_000,
    source_text: Annotated[str | None, typer.Option("--source-text-column", help="Column of the source.")] = None,
    text: Annotated[str | None, typer.Option("--text-column", help="Column of the target's text.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt-column", help="Column of the target's prompts.")] = None,
    completion: Annotated[str | None, typer.Option("--completion-column", help="Column of completions.")] = None,
    dtype: Annotated[str, typer.Option(help="Load the model in: auto, float32, bfloat16, float16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder to write results.json to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure learning and forgetting of an adapter on data of your own.

    Example: [bold]holdfast evaluate --model ./llama --adapter out/adapter --source old.txt --target new.txt[/bold]
    """
    from holdfast.cli.output import print_json, quiet_libraries
    from holdfast.cli.summary import print_rows
    from holdfast.errors import HoldfastError
    from holdfast.evaluate import evaluate as run
    from holdfast.files import write_json
    from holdfast.recipe import DataSettings

    if source is None and target is None:
        raise HoldfastError("nothing to measure on", remedy="pass --source, --target, or both")
    quiet_libraries()
    sides = {
        "source": None if source is None else DataSettings(path=source, text=source_text),
        "target": None
        if target is None
        else DataSettings(path=target, text=text, prompt=prompt, completion=completion),
    }
    results = run(model, adapter, sides, length=length, max_items=max_items, dtype=dtype)
    if out is not None:
        write_json(out / "results.json", results)
    if as_json:
        print_json(results)
        return
    print_rows(results)
