"""`holdfast evaluate`: losses of a model, with and without an adapter."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from holdfast.cli.options import (
    DTYPES,
    Completion,
    Prompt,
    SourceCompletion,
    SourcePrompt,
    SourceText,
    Text,
    check_dtype,
    flag,
    option,
)

MEASURE = "Measuring"


def evaluate(
    model: Annotated[str, option("Folder or hub id of the pre-trained model.", "MODEL")],
    adapter: Annotated[
        Path | None, option("A PEFT adapter (OUT/adapter), or a model that was tuned whole (OUT/model).", "DIR")
    ] = None,
    source: Annotated[str | None, option("Old data: what should have been kept.", "DATA")] = None,
    target: Annotated[str | None, option("New data: what should have been learned.", "DATA")] = None,
    out: Annotated[Path | None, option("Folder to write results.json to.", "DIR")] = None,
    length: Annotated[int, option("Tokens per sequence.", "N", MEASURE)] = 512,
    max_items: Annotated[int, option("Stop after this many tokens per side.", "N", MEASURE, min=1)] = 200_000,
    dtype: Annotated[str, option(DTYPES, "NAME", MEASURE)] = "auto",
    source_text: SourceText = None,
    source_prompt: SourcePrompt = None,
    source_completion: SourceCompletion = None,
    text: Text = None,
    prompt: Prompt = None,
    completion: Completion = None,
    as_json: Annotated[bool, flag("--json", "Print results.json on standard output.")] = False,
) -> None:
    """Measure what a model, with and without an adapter, knows of old and new data.

    All of the data is measured, so name data that was not trained on.

    Example: [bold]holdfast evaluate --model ./llama --adapter out/adapter --source old.txt --target new.txt[/bold]
    """
    from holdfast.errors import HoldfastError
    from holdfast.recipe import DataSettings

    if source is None and target is None:
        raise HoldfastError("nothing to measure on", remedy="pass --source, --target, or both")
    check_dtype(dtype)
    from holdfast.cli.output import print_json, quiet_libraries

    quiet_libraries()
    from holdfast.cli.summary import print_rows
    from holdfast.evaluate import evaluate as run
    from holdfast.files import output_folder, write_json

    sides = {
        "source": None
        if source is None
        else DataSettings(path=source, text=source_text, prompt=source_prompt, completion=source_completion),
        "target": None
        if target is None
        else DataSettings(path=target, text=text, prompt=prompt, completion=completion),
    }
    with nullcontext() if out is None else output_folder(out):
        results = run(model, adapter, sides, length=length, max_items=max_items, dtype=dtype)
        if out is not None:
            write_json(out / "results.json", results)
    if as_json:
        print_json(results)
        return
    print_rows(results)
