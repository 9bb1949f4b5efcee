"""`holdfast analyse calibration`: how far forecasts can be believed."""

from pathlib import Path
from typing import Annotated, Any

from holdfast.cli.analyse_options import Adapter, AsJson, Dtype, Length, Model, Seed, Source, Target, out_option, run
from holdfast.cli.options import option

PATH, FORECAST = "The path", "The forecasts"


def calibration(
    out: Annotated[Path, out_option("calibration")] = Path("out/calibration"),
    model: Model = None,
    source: Source = None,
    target: Target = None,
    adapter: Adapter = None,
    checkpoints: Annotated[
        Path | None, option("Along the checkpoints of a run instead (OUT of holdfast tune).", "DIR", PATH)
    ] = None,
    alphas: Annotated[
        str | None, option("Shares of the adapter's shift.", "A,B,...", PATH, default="0.1,0.2,...,1,1.25,1.5")
    ] = None,
    steps: Annotated[int, option("Of LoRA on the target, where no adapter is named.", "N", PATH, min=1)] = 60,
    anchor: Annotated[list[Path] | None, option("A stored anchor; several may be named.", "DIR", FORECAST)] = None,
    curvature: Annotated[
        str | None,
        option(
            "Measured here, on other source rows.",
            "KIND,...",
            FORECAST,
            default="kronecker,diagonal,samples-joint without --anchor",
        ),
    ] = None,
    items: Annotated[int, option("Source tokens that curvatures are measured on.", "N", FORECAST, min=2)] = 32_000,
    keep: Annotated[int, option("Sequences that stored samples keep.", "N", FORECAST, min=1)] = 64,
    held_out: Annotated[int, option("Source tokens that the rise is measured on.", "N", FORECAST, min=2)] = 16_000,
    length: Length = 128,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Forecast forgetting against measured forgetting, along the way that an adapter took the weights.

    At shares of the adapter's shift, or at a run's checkpoints, what each anchor forecasts and what is measured on
    source rows that no curvature saw.

    Example: [bold]holdfast analyse calibration --adapter out/adapter --curvature kronecker,eigen[/bold]
    """
    asked = {"model": model, "source": source, "target": target, "length": length, "dtype": dtype, "seed": seed}
    asked |= {"train_items": max(items, 16 * length * steps), "test_items": held_out}

    def analyse(asked: Any) -> Any:
        from holdfast.analysis.calibrate import Wanted, calibrate

        wanted = Wanted(adapter, checkpoints, alphas, steps, tuple(anchor or ()), curvature, items, keep)
        return calibrate(asked, wanted)

    run(out, asked, analyse, as_json)
