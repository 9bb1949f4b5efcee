"""`holdfast demo`: the embedded main job."""

from pathlib import Path
from typing import Annotated

from holdfast.cli.options import flag, option


def demo(
    out: Annotated[Path, option("Folder for results.json and report.html.", "DIR")] = Path("out/demo"),
    every: Annotated[bool, flag("--all", "Every way of holding on, not the usual five.")] = False,
    seeds: Annotated[int, option("Repeat with this many seeds.", "N", min=1)] = 1,
    sweep: Annotated[bool, flag("--sweep", "A grid of strengths for each way; an hour or more.")] = False,
    steps: Annotated[int | None, option("Optimizer steps per run.", "N", min=1, default="200")] = None,
    processes: Annotated[int | None, option("Runs at a time.", "N", min=1, default="one per core")] = None,
    as_json: Annotated[bool, flag("--json", "Print results.json on standard output.")] = False,
) -> None:
    """A small model that knows English learns Python code; see what it forgets, and what holding on keeps.

    Everything it needs is in the package: no network, a few minutes on two cores.

    Example: [bold]holdfast demo --out out/demo[/bold]
    """
    from holdfast.cli.output import print_json, quiet_libraries, say

    say("A 1.1 M-parameter Llama pre-trained on documentation prose learns Python code with LoRA.")
    quiet_libraries()
    from holdfast.cli.live import LiveRows
    from holdfast.cli.summary import print_rows
    from holdfast.demo import run

    with LiveRows() as live:
        results = run(out, every=every, seeds=seeds, sweep=sweep, steps=steps, processes=processes, watch=live)
    if as_json:
        print_json(results)
        return
    print_rows(results)
    for sample in results["rows"][0]["samples"]:
        say(f"\n{sample['side']} prompt: {sample['prompt']!r}")
        say(f": {' '.join(sample['before'].split())[:160]}", strong="  before")
        for row in results["rows"]:
            if row["seed"] == 0:
                after = next(s["after"] for s in row["samples"] if s["side"] == sample["side"])
                say(f": {' '.join(after.split())[:160]}", strong=f"  {row['penalty']}")
    say(f"\nOpen {out / 'report.html'} for the learning-against-forgetting plot.")
