"""What an anchor costs: estimation over one plain forward and backward, beside other curvature libraries.

    python benchmarks/anchor.py --json benchmarks/results/anchor.json

A Llama with random weights (hidden 256, 4 layers, intermediate 1024, 4 heads, vocabulary 4096, float32, 28 target
layers), 64 sequences of 128 random tokens, batches of 8. `ratio` is the CPU time of the whole estimate over that of
a forward and backward pass with all weights trainable on the same batches.

Cases: `kronecker` (every token), `kronecker-bf16` (bfloat16 products, float32 sums), `kronecker-quarter` (a quarter
of the positions enter the sums) and `diagonal`. `labels` is "sampled" from the model or the "data"'s own.
Libraries that are installed run in turn with ours; see `anchor_peers.py`.
"""

import copy
from functools import partial
from typing import Any

import anchor_peers
import torch
from measure import Case, arguments, interleaved, milliseconds, publish, ratio
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.anchor import Anchor
from holdfast.curvature.kronecker import Kronecker

OURS: dict[str, dict[str, Any]] = {
    "kronecker": {},
    "kronecker-bf16": {"dtype": torch.bfloat16},
    "kronecker-quarter": {"fraction": 0.25},
    "diagonal": {"curvature": "diagonal"},
}
DATA_LABELS = ("kronecker", "diagonal")
AGAINST = "one forward and backward with all weights trainable"
Key = tuple[str, str, str]  # tool, case, labels


def main() -> None:
    """Measure, and write or print."""
    parser = arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--no-peers", action="store_true", help="only Holdfast")
    chosen = parser.parse_args()
    model, ids = workload()
    cases: dict[Key, Case] = {("plain", "", ""): plain(model, ids), **ours(model, ids)}
    prepared, skipped = ({}, []) if chosen.no_peers else anchor_peers.prepare(copy.deepcopy(model), ids)
    cases |= {key: peer.run for key, peer in prepared.items()}
    seconds = interleaved(cases, chosen.repeats)
    reference = seconds.pop(("plain", "", ""))
    difference = g_differences(model, ids, prepared)
    rows = [
        {
            "tool": tool,
            "case": case,
            "labels": labels,
            "ms": milliseconds(taken),
            "tokens_per_s": round(ids.numel() / milliseconds(taken) * 1e3),
            "ratio": ratio(taken, reference),
            "against": AGAINST,
            **({"kind": prepared[tool, case, labels].kind} if tool != "holdfast" else {}),
            **difference.get((tool, case, labels), {}),
        }
        for (tool, case, labels), taken in seconds.items()
    ]
    facts = {"repeats": chosen.repeats, "time": "CPU, one thread, median", "plain_ms": milliseconds(reference)}
    publish(rows, chosen.json, **facts, skipped=skipped)


def workload() -> tuple[LlamaForCausalLM, Tensor]:
    """The model and its tokens, (64, 128)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval(), torch.randint(0, 4096, (64, 128))


def plain(model: LlamaForCausalLM, ids: Tensor) -> Case:
    """The reference: gradients of all weights, batch by batch."""

    def run() -> None:
        for batch in ids.split(8):
            model(input_ids=batch, labels=batch).loss.backward()
            model.zero_grad()

    return run


def ours(model: LlamaForCausalLM, ids: Tensor) -> dict[Key, Case]:
    """Everything `Anchor.estimate` does, the weights' fingerprints included."""
    batches = [{"input_ids": batch} for batch in ids.split(8)]
    return {
        ("holdfast", case, labels): partial(Anchor.estimate, model, batches, fisher=labels, progress=False, **options)
        for labels in ("sampled", "data")
        for case, options in OURS.items()
        if labels == "sampled" or case in DATA_LABELS
    }


def g_differences(
    model: LlamaForCausalLM, ids: Tensor, prepared: dict[Key, anchor_peers.Prepared]
) -> dict[Key, dict[str, float]]:
    """How far each library's G is from ours where labels are the data's: both scaled to trace 1, Frobenius norm.

    Libraries scale G differently, so only its direction can be compared.
    """
    anchor = ours(model, ids)["holdfast", "kronecker", "data"]()
    assert isinstance(anchor, Anchor)
    found = {}
    for key, peer in prepared.items():
        if key[1:] != ("kronecker", "data") or peer.gradients is None:
            continue
        worst = 0.0
        for name, theirs in peer.gradients().items():
            mine = anchor.curvatures[name]
            assert isinstance(mine, Kronecker)
            wanted = mine.gradients.tensors()["full"]
            wanted = wanted / wanted.trace()
            worst = max(worst, float((theirs / theirs.trace() - wanted).norm() / wanted.norm()))
        found[key] = {"g_difference": worst}
    return found


if __name__ == "__main__":
    main()
