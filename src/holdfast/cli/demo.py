"""`holdfast demo`: the embedded main job."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json and report.html.")] = Path("out/demo"),
    every: Annotated[bool, typer.Option("--all", help="Every way of holding on, not the usual five.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with this many seeds.")] = 1,
    sweep: Annotated[bool, typer.Option("--sweep", help="A grid of strengths for each; an hour or more.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps per run.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """A small model that knows English learns Python code; see what it forgets, and what holding on keeps.

    Offline, a few minutes on two cores. Example: [bold]holdfast demo --out out/demo[/bold]
    """
    from holdfast.cli.live import LiveRows
    from holdfast.cli.output import print_json, quiet_libraries, say
    from holdfast.cli.summary import print_rows
    from holdfast.demo import run

    quiet_libraries()
    say("A 1.1 M-parameter Llama pre-trained on documentation prose learns Python code with LoRA.")
    with LiveRows() as live:
        results = run(out, every=every, seeds=seeds, sweep=sweep, steps=steps, processes=processes, watch=live)
    if as_json:
        print_json(results)
        return
    print_rows(results)
    for sample in results["rows"][0]["samples"]:
        say(f"\n{sample['side']} prompt: {sample['prompt']!r}")
        for row in results["rows"]:
            if row["seed"] == 0:
                after = next(s["after"] for s in row["samples"] if s["side"] == sample["side"])
                say(f"  [bold]{row['penalty']}[/bold]: {' '.join(after.split())[:160]}")
        say(f"  [bold]before[/bold]: {' '.join(sample['before'].split())[:160]}")
    say(f"\nOpen {out / 'report.html'} for the learning-against-forgetting plot.")
