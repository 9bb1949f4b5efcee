"""`holdfast analyse landscape`: how the loss lies around the weights."""

from pathlib import Path
from typing import Annotated, Any

from holdfast.cli.analyse_options import Adapter, AsJson, Dtype, Length, Model, Seed, Target, out_option, run
from holdfast.cli.options import flag, option

GRID = "What is measured"


def landscape(
    out: Annotated[Path, out_option("landscape")] = Path("out/landscape"),
    model: Model = None,
    target: Target = None,
    adapter: Adapter = None,
    length: Length = 128,
    items: Annotated[int, option("Tokens of the target that the loss is measured on.", "N", GRID, min=2)] = 1024,
    dtype: Dtype = "auto",
    span: Annotated[float, option("alpha goes from -SPAN to SPAN.", "SPAN", GRID)] = 1.0,
    points: Annotated[int, option("Points along each line; odd.", "N", GRID)] = 41,
    seeds: Annotated[int, option("Random directions.", "N", GRID, min=1)] = 5,
    plane: Annotated[int, option("Points along each side of a plane; odd, 0 for none.", "N", GRID, min=0)] = 9,
    normalise: Annotated[str, option("Random directions scaled by filter, layer or none.", "HOW", GRID)] = "filter",
    tau: Annotated[float, option("Nats above the lowest loss that a level set takes.", "NATS", GRID)] = 0.1,
    floor: Annotated[float, option("Nats below which a step changes no direction.", "NATS", GRID)] = 1e-4,
    no_random: Annotated[bool, flag("--no-random", "Leave the random initialisation out.", GRID)] = False,
    no_gradient: Annotated[bool, flag("--no-gradient", "Leave the gradient's direction out.", GRID)] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The loss on new data around the pre-trained weights and around a random start: valleys, ripples, planes.

    Shows whether pre-training makes the loss vary more and oscillate, as SIFT claims. With --adapter also the way to
    its weights. The model's weights come back to the last bit.

    Example: [bold]holdfast analyse landscape --adapter out/adapter --out out/landscape[/bold]
    """
    asked = {"model": model, "target": target, "length": length, "dtype": dtype, "seed": seed}
    asked |= {"train_items": length, "test_items": items}

    def analyse(asked: Any) -> Any:
        from holdfast.analysis import landscape as landscapes
        from holdfast.analysis.landscape_finding import finding
        from holdfast.analysis.subject import batches, read_subject
        from holdfast.analysis.tuned import moved_by

        grid = landscapes.Grid(span, points, seeds, plane, normalise, floor, tau, seed)  # type: ignore[arg-type]
        grid.check()
        subject = read_subject(asked, "target")
        tuned = None if adapter is None else moved_by(subject.model, adapter, dtype)
        found = landscapes.landscape(
            subject.model,
            batches(subject.target.held_out),
            grid,
            tuned=tuned,
            gradient=not no_gradient,
            random=not no_random,
            progress=True,
        )
        about = {"adapter": None if adapter is None else str(adapter), "length": length, "items": items}
        return finding(found, {**subject.about, **about, "dtype": dtype})

    run(out, asked, analyse, as_json)
