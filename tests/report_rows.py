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
