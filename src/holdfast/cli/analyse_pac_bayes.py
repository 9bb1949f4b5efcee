"""`holdfast analyse pac-bayes`: a guarantee for the tuned model, and what the prior's centre is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from holdfast.cli.analyse_options import SUBJECT, Adapter, AsJson, Dtype, Length, Model, Seed, out_option, run
from holdfast.cli.options import option

if TYPE_CHECKING:
    from holdfast.analysis.leaving import Finding
    from holdfast.analysis.subject import Asked

TUNE, BOUND = "How it is tuned", "What is certified"


def pac_bayes(
    out: Annotated[Path, out_option("pac-bayes")] = Path("out/pac-bayes"),
    model: Model = None,
    target: Annotated[
        str | None, option("Documents like those to come.", "DATA", SUBJECT, default="modules of PyTorch")
    ] = None,
    adapter: Adapter = None,
    prior_adapter: Annotated[
        Path | None, option("An adapter trained without these documents, as the prior's centre.", "DIR", BOUND)
    ] = None,
    method: Annotated[
        str | None, option("How to tune, where no adapter is named.", "NAME", TUNE, default="lora")
    ] = None,
    rank: Annotated[int | None, option("Of the adapter.", "R", TUNE, min=1, default="2, where it has one")] = None,
    parameters: Annotated[
        str | None, option("Trained parameters: a count, or a share of the model's (0.5%).", "N", TUNE)
    ] = None,
    steps: Annotated[
        int | None, option("On the first half; half as many follow on all.", "N", TUNE, min=1, default="60")
    ] = None,
    learning_rate: Annotated[float | None, option("Peak.", "RATE", TUNE, default="0.003")] = None,
    loss: Annotated[str, option("error (of the next token), or nats (cut off and scaled).", "NAME", BOUND)] = "error",
    ceiling: Annotated[float, option("Nats at which a token's loss is cut off.", "NATS", BOUND)] = 8.0,
    prior: Annotated[str, option("Shape of the prior: a curvature of the first half.", "KIND", BOUND)] = "identity",
    delta: Annotated[float, option("Probability that the certificate is wrong.", "P", BOUND)] = 0.05,
    draws: Annotated[int, option("Of noise, to measure the risk under it.", "N", BOUND, min=2)] = 1000,
    tolerance: Annotated[float, option("Rise of the loss that noise may cause.", "SHARE", BOUND)] = 0.01,
    share: Annotated[float, option("Of the documents, for the prior.", "SHARE", BOUND)] = 0.5,
    length: Length = 128,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """What is the tuned model's loss on fresh documents, at most, and what is pre-training worth for it?

    Half of the documents serve the prior; the bound holds on the other half, whatever was trained on them. Give a file
    with a row per document, or a folder: documents are counted, not tokens.

    Example: [bold]holdfast analyse pac-bayes --model ./llama --target tickets.jsonl --out out/certificate[/bold]
    """
    from holdfast.errors import HoldfastError

    if prior_adapter is not None and adapter is None:
        raise HoldfastError("--prior-adapter without --adapter", remedy="name the adapter to certify")
    tuning: dict[str, Any] = {
        "method": method,
        "rank": rank,
        "parameters": parameters,
        "steps": steps,
        "learning_rate": learning_rate,
    }
    given = {name: value for name, value in tuning.items() if value is not None}
    if adapter is not None and given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise HoldfastError(f"{named} beside --adapter: a finished adapter is not tuned", remedy="leave it out")
    certified: dict[str, Any] = {"prior": prior, "loss": loss, "ceiling": ceiling, "delta": delta, "draws": draws}
    asked = {"model": model, "target": target, "length": length, "dtype": dtype, "seed": seed}

    def analyse(subject: "Asked") -> "Finding":
        from holdfast.analysis.pac_bayes.study import Options, study

        options = Options(**given, **certified, tolerance=tolerance, share=share)
        return study(subject, options, adapter, prior_adapter)

    run(out, asked, analyse, as_json)
