"""`holdfast combine`: sums of finished SIFT adapters."""

from pathlib import Path
from typing import Annotated

from holdfast.cli.options import DTYPES, check_dtype, flag, option


def combine(
    adapter: Annotated[list[Path], option("A finished SIFT adapter; once for each.", "DIR")],
    out: Annotated[Path, option("Folder for the sum, an adapter like the others.", "DIR")],
    weight: Annotated[
        list[float] | None, option("What the adapters are multiplied by, in their order.", "W", default="1 for all")
    ] = None,
    model: Annotated[str | None, option("The base model; default: what the first adapter names.", "MODEL")] = None,
    dtype: Annotated[str, option(DTYPES + " As in training.", "NAME")] = "auto",
    as_json: Annotated[bool, flag("--json", "Print what was done on standard output.")] = False,
) -> None:
    """Add finished SIFT adapters up, or take one away from another: no training, no approximation.

    Example: [bold]holdfast combine --adapter A --weight 1 --adapter B --weight -1 --out DIR[/bold]
    """
    from holdfast.cli.output import print_json, quiet_libraries, say
    from holdfast.errors import HoldfastError

    check_dtype(dtype)
    weights = weight or [1.0] * len(adapter)
    if len(weights) != len(adapter):
        raise HoldfastError(f"{len(adapter)} adapters and {len(weights)} weights", remedy="give one --weight for each")
    quiet_libraries()
    from holdfast.combine import combine as run

    done = run(list(zip(adapter, weights, strict=True)), out, model, dtype)
    if as_json:
        print_json(done)
        return
    say(f"{done['entries']:,} entries of {len(done['tensors'])} tensors; the sum is in {out}")
