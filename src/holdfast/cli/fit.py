"""`holdfast fit`: bring a finished adapter back inside a forgetting budget."""

from pathlib import Path
from typing import Annotated, Any

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

FIT, MEASURE = "Fitting", "Measuring"
SHOWN = 8  # layers in the table


def fit(
    adapter: Annotated[
        Path, option("A finished PEFT adapter, or a model that was tuned whole (OUT/model); it is left alone.", "DIR")
    ],
    anchor: Annotated[Path, option("What moves cost: a folder that holdfast anchor wrote.", "DIR")],
    budget: Annotated[
        str, option('The most that may be forgotten: 0.02 (nats), 1%, "loss 1%" or "accuracy 0.5".', "BUDGET")
    ],
    out: Annotated[Path, option("Folder for the fitted adapter and results.json.", "DIR")] = Path("fitted"),
    model: Annotated[str | None, option("The base model; default: what the adapter names.", "MODEL")] = None,
    how: Annotated[
        str, option("scale: one factor; layers: one for each layer; project: directions inside layers.", "WAY", FIT)
    ] = "layers",
    worth: Annotated[
        str,
        option("What a layer is worth: its length, or what the target says (not for scale).", "length|target", FIT),
    ] = "length",
    source: Annotated[
        str | None, option('Old data: measured forgetting then decides; "self": text the model samples.', "DATA")
    ] = None,
    target: Annotated[str | None, option("New data: what the fit costs of what was learned.", "DATA")] = None,
    length: Annotated[int, option("Tokens per sequence.", "N", MEASURE)] = 512,
    max_items: Annotated[int, option("Tokens read of each part of the data at most.", "N", MEASURE)] = 50_000,
    held_out: Annotated[
        float, option("Share of the data that steers nothing and is reported.", "SHARE", MEASURE)
    ] = 0.5,
    dtype: Annotated[str, option(DTYPES, "NAME", MEASURE)] = "auto",
    seed: Annotated[int, option("Of sampled text.", "N", MEASURE)] = 0,
    source_text: SourceText = None,
    source_prompt: SourcePrompt = None,
    source_completion: SourceCompletion = None,
    text: Text = None,
    prompt: Prompt = None,
    completion: Completion = None,
    as_json: Annotated[bool, flag("--json", "Print results.json on standard output.")] = False,
) -> None:
    """Shrink a finished adapter, anyone's, into a forgetting budget: in closed form, without training.

    Without --source the anchor's forecast decides alone, and forecasts are low.

    Example: [bold]holdfast fit --adapter out/adapter --anchor anchors/mine --budget 1% --source old.txt[/bold]
    """
    from holdfast import recipe as recipes
    from holdfast.fit_recipe import FitRecipe

    check_dtype(dtype)
    given: dict[str, Any] = {
        "model": model, "adapter": str(adapter), "anchor": str(anchor), "budget": budget, "how": how, "worth": worth,
        "length": length, "max_items": max_items, "held_out": held_out, "dtype": dtype, "seed": seed,
        "source": {"path": source, "text": source_text, "prompt": source_prompt, "completion": source_completion},
        "target": {"path": target, "text": text, "prompt": prompt, "completion": completion},
    }  # fmt: skip
    _run(recipes.validate(FitRecipe, recipes.merge({}, given)), out, as_json)


def _run(recipe: Any, out: Path, as_json: bool) -> None:
    from holdfast.cli.output import print_json, quiet_libraries, say

    quiet_libraries()
    from holdfast.fit_folder import fit_folder

    results = fit_folder(recipe, out, say=say)
    if as_json:
        print_json(results)
        return
    _print(results["rows"][0])
    for warning in results["warnings"]:
        say(warning, strong="note: ")
    say(f"{'Adapter' if (out / 'adapter').is_dir() else 'The fitted model'} and results.json are in {out}")


def _print(row: dict[str, Any]) -> None:
    from holdfast.cli.output import console, number, print_table

    dearest = sorted(row["factors"], key=lambda name: -row["per_layer_unfitted"][name])
    prices, left = row["per_layer_unfitted"], row["per_layer"]
    print_table(
        f"{row['how']}: the dearest {min(SHOWN, len(dearest))} of {len(dearest)} layers",
        ["layer", "price", "kept", "price then"],
        [[n, f"{prices[n]:.3g}", f"{row['factors'][n]:.3f}", f"{left[n]:.3g}"] for n in dearest[:SHOWN]],
        right=1,
    )
    lines = []
    if row["predicted_forgetting"] is not None:
        lines.append(["forecast", "0", number(row["predicted_unfitted"], 4), number(row["predicted_forgetting"], 4)])
    if row["forgetting"] is not None:
        lines.append(["forgotten", "0", number(row["forgetting_unfitted"], 4), _with_error(row)])
    lines += [
        [f"{side} loss", *(number(row[f"{side}_{when}"], 4) for when in ("before", "unfitted", "after"))]
        for side in ("source", "target")
        if row[f"{side}_after"] is not None
    ]
    unit = "; points of accuracy forgotten" if row["budget_unit"] == "points" else ""
    print_table(f"losses in nats per token{unit}", ["", "base", "as it came", "fitted"], lines, right=1)
    by = "what was measured" if row["steered_by"] == "measurement" else "the forecast alone"
    console.print(f"budget {row['budget_words']}; steered by {by}", highlight=False, soft_wrap=True)


def _with_error(row: dict[str, Any]) -> str:
    error = row["forgetting_error"]
    return f"{row['forgetting']:.4f}" + ("" if error is None else f" ± {error:.4f}")
