"""`holdfast analyse sparsity`: whether few entries of a gradient carry nearly all of its norm."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from holdfast.cli.analyse_options import (
    Adapter,
    AsJson,
    Dtype,
    Length,
    Model,
    Seed,
    Source,
    Target,
    out_option,
    run,
)
from holdfast.cli.options import flag, option

if TYPE_CHECKING:
    from holdfast.analysis.leaving import Finding
    from holdfast.analysis.subject import Asked

MEASURE = "Measuring"


def sparsity(
    out: Annotated[Path, out_option("sparsity")] = Path("out/sparsity"),
    model: Model = None,
    source: Source = None,
    target: Target = None,
    adapter: Adapter = None,
    examples: Annotated[
        list[int] | None,
        option("Sum the gradient over N examples; give it again for others.", "N", MEASURE, default="1, 8, 64"),
    ] = None,
    steps: Annotated[int, option("Steps of training that masks are followed over.", "N", MEASURE, min=0)] = 32,
    learning_rate: Annotated[float, option("Of that training.", "RATE", MEASURE)] = 1e-3,
    pretrained_only: Annotated[
        bool, flag("--pretrained-only", "Leave the random initialisation out.", MEASURE)
    ] = False,
    length: Length = 128,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Do 1 % of the entries carry 99 % of the gradient's norm, and do they stay the same?

    On the target: tensor by tensor against Gaussian and Laplace noise, pre-trained against random weights, and whether
    the largest entries stay the largest over other examples, the source, and training.

    Example: [bold]holdfast analyse sparsity --model ./llama --target new.txt --source old.txt --out out/seen[/bold]
    """
    asked = {"model": model, "source": source, "target": target, "length": length, "dtype": dtype, "seed": seed}

    def analyse(subject: "Asked") -> "Finding":
        from holdfast.analysis.sparsity_study import EXAMPLES, Options, study

        counts = tuple(examples) if examples else EXAMPLES
        options = Options(counts, steps, learning_rate, random=not pretrained_only)
        return study(subject, options, adapter)

    run(out, asked, analyse, as_json)
