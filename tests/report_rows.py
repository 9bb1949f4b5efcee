"""Made-up results for the tests of the report."""

SAMPLES = [
    {"prompt": "Return the number", "side": "source", "before": " of bytes.", "after": " of items."},
    {"prompt": "def main():", "side": "target", "before": " is a word", "after": "\n    return 0"},
]


def row(penalty="none", strength=None, seed=0, source=4.455, target=3.763, method="lora", **more):
    """One run from a source loss of 3.480 and a target loss of 4.559."""
    before = {"source_before": 3.480, "target_before": 4.559}
    after = {"source_after": source, "target_after": target}
    return {"method": method, "penalty": penalty, "strength": strength, "seed": seed, **before, **after, **more}


def measured(forecast, step=0.2):
    """The keys that a whole run adds."""
    history = [
        {"step": i, "loss": 4.5 - i / 100, "predicted_forgetting": forecast * i / 100} for i in range(10, 110, 10)
    ]
    layers = {f"model.layers.{block}.mlp.{kind}": 0.1 * block + 0.01 for block in range(2) for kind in ("up", "down")}
    cost = {"seconds": 60.0, "anchor_seconds": 20.0, "seconds_per_step": step, "peak_memory_mb": 600.0}
    return {
        "predicted_forgetting": forecast,
        "trainable_parameters": 143_360,
        "samples": SAMPLES,
        "history": history,
        "per_layer": layers,
        **cost,
    }


def results(rows, **more):
    """A whole results.json."""
    return {
        "schema": 1,
        "title": "Prose learns code",
        "question": "Can it?",
        "settings": {"lora": {"rank": 8}, "seeds": [0, 1]},
        "machine": {"cpu": "2 cores"},
        "versions": {"torch": "2.13.0"},
        "source": {"name": "documentation prose", "item": "token"},
        "target": {"name": "Python code", "item": "token"},
        "rows": rows,
        "warnings": ["Only one seed."],
        **more,
    }


COMPARISON = [
    row(**measured(0.62)),
    row("diagonal", 10.0, source=3.885, target=3.869, **measured(0.13)),
    row("kronecker", 1.0, source=3.827, target=3.798, **measured(0.11)),
    row("kronecker", 3.0, source=3.688, target=3.839, **measured(0.06)),
    row("kronecker+distill-self", 1.0, source=3.512, target=3.856, **measured(0.03, step=0.3)),
]


def along(row, steps=(0, 25, 50, 75, 100)):
    """What a run measures on its way, in a straight line from its losses before to those after."""
    sides = ("source", "target")
    part = {side: row[f"{side}_after"] - row[f"{side}_before"] for side in sides}
    return [{"step": s, **{side: row[f"{side}_before"] + part[side] * s / steps[-1] for side in sides}} for s in steps]


def budgeted(budget, forecast, found, seed=0, penalty="kronecker", scaled=1.0, **more):
    """One run that was held to a budget in nats."""
    whole = measured(forecast)
    steps = [entry["step"] for entry in whole["history"]]
    history = [
        entry | {"strength": 1 + 3 * i / len(steps), "calibrated_forecast": found * i / len(steps)}
        for i, entry in enumerate(whole["history"])
    ]
    own = row(penalty, None, seed, source=3.480 + found, target=3.80, **whole)
    sizes = {name: 0.01 + price / 10 for name, price in whole["per_layer"].items()}
    kept = {"budget": budget, "budget_unit": "nats", "budget_words": f"{budget:g} nats per item"}
    steered = {"steered_by": "measurement", "scaled_by": scaled, "forgetting": found, "forgetting_error": 0.001}
    return {**own, **kept, **steered, "history": history, "shift_sizes": sizes, "along": along(own), **more}


def two_hundred():
    """40 settings with 5 seeds each, with histories, layers and samples as a real run has them."""
    penalties = ("none", "identity", "diagonal", "kronecker", "distill-self", "distill-source", "replay", "another")
    long = [sample | {"before": "before " * 60, "after": "after " * 60} for sample in SAMPLES]
    layers = {f"model.layers.{b}.{kind}": 0.001 * (b + 1) for b in range(12) for kind in "qkvoudg"}
    rows = []
    for i, penalty in enumerate(penalties):
        for strength in (1.0, 3.0, 5.0, 10.0, 30.0):
            for seed in range(5):
                losses = 4.4 - i / 10 - strength / 50 + seed / 200, 3.76 + strength / 50 + seed / 300
                whole = measured(0.4 - i / 25) | {"samples": long, "per_layer": layers, "shift_sizes": layers}
                history = [
                    {"step": s, "loss": 4.5 - s / 1000, "predicted_forgetting": s / 1e4} for s in range(10, 1010, 10)
                ]
                one = row(penalty, None if penalty == "none" else strength, seed, *losses, **whole)
                rows.append(one | {"history": history, "along": along(one)})
    return rows
