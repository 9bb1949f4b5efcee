"""What the penalty costs: one layer against the dense form, and a whole training step against the step without it.

    python benchmarks/penalty.py --json benchmarks/results/penalty.json

One (d, d) layer with a LoRA shift of rank 16 and scale 2, float32: value and gradients of both factors.

- Rows with a `d`: `ratio` is the dense form's time over this one's. The dense form materialises D = s B A and
  multiplies it entry by entry or by both factors, under autograd.
- The row "step": `ratio` is the time of a LoRA step (forward, backward, penalty, AdamW) over that of the same step
  without the penalty.

Every case's value and gradients are compared with the dense form's before any is timed.
"""

from collections.abc import Callable
from typing import Any

import torch
from measure import arguments, interleaved, milliseconds, publish, ratio
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.anchor import Anchor
from holdfast.curvature.diagonal import Diagonal
from holdfast.curvature.identity import Identity
from holdfast.curvature.kronecker import Kronecker
from holdfast.penalties.prices import quadratic_form
from holdfast.penalties.quadratic import Penalty
from holdfast.shifts.low_rank import LowRank

RANK, SCALE = 16, 2.0
TOLERANCE = 1e-3  # float32 sums of d^2 terms, relative to the largest entry
Value = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Measure, and write or print."""
    parser = arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096], help="widths d of the layer")
    parser.add_argument("--steps", type=int, default=21, help="training steps of each kind")
    chosen = parser.parse_args()
    rows = [row for d in chosen.sizes for row in of_layer(d, chosen.repeats)]
    publish([*rows, of_step(chosen.steps)], chosen.json, repeats=chosen.repeats, time="CPU, one thread, median")


def of_layer(d: int, repeats: int) -> list[dict[str, Any]]:
    """Every curvature at one width."""
    torch.manual_seed(d)
    inputs, gradients, fisher = moment(d), moment(d), torch.rand(d, d)
    kronecker = Kronecker.of(inputs, gradients)
    rows = []
    rows += against_dense(
        "kronecker",
        "D = s B A materialised, G D S multiplied densely, autograd",
        lambda up, down: _dense(up, down, lambda delta: gradients @ delta @ inputs),
        {
            "holdfast": lambda up, down: quadratic_form(LowRank(up, down, SCALE), kronecker),
            "trace form under autograd": lambda up, down: _trace(up, down, inputs, gradients),
        },
        d,
        repeats,
    )
    diagonal = Diagonal(fisher)
    rows += against_dense(
        "diagonal",
        "D = s B A materialised, F * D * D, autograd",
        lambda up, down: _dense(up, down, lambda delta: fisher * delta),
        {"holdfast": lambda up, down: quadratic_form(LowRank(up, down, SCALE), diagonal)},
        d,
        repeats,
    )
    identity = Identity.of_shape(d, d)
    rows += against_dense(
        "identity",
        "D = s B A materialised, D * D, autograd",
        lambda up, down: _dense(up, down, lambda delta: delta),
        {"holdfast": lambda up, down: quadratic_form(LowRank(up, down, SCALE), identity)},
        d,
        repeats,
    )
    return rows


def against_dense(
    case: str, against: str, dense: Value, forms: dict[str, Value], d: int, repeats: int
) -> list[dict[str, Any]]:
    """One row for each form."""
    up, down = (torch.randn(d, RANK) / d**0.5).requires_grad_(), torch.randn(RANK, d).requires_grad_()
    wanted = evaluated(dense, up, down)
    errors = {tool: _error(evaluated(form, up, down), wanted) for tool, form in forms.items()}
    for tool, error in errors.items():
        if not error < TOLERANCE:
            raise SystemExit(f"{tool}, {case}, d={d}: differs from the dense form by {error:.1e}")
    calls = {tool: lambda form=form: evaluated(form, up, down) for tool, form in forms.items()}
    seconds = interleaved({"dense": lambda: evaluated(dense, up, down), **calls}, repeats, at_least=0.1)
    return [
        {
            "tool": tool,
            "case": case,
            "d": d,
            "rank": RANK,
            "ms": milliseconds(seconds[tool]),
            "dense_ms": milliseconds(seconds["dense"]),
            "ratio": ratio(seconds["dense"], seconds[tool]),
            "against": against,
            "relative_error": errors[tool],
        }
        for tool in forms
    ]


def evaluated(form: Value, up: Tensor, down: Tensor) -> tuple[Tensor, ...]:
    """The value and both gradients."""
    value = form(up, down)
    return (value.detach(), *torch.autograd.grad(value, (up, down)))


def moment(d: int) -> Tensor:
    """A second moment, (d, d): symmetric and positive semi-definite."""
    rows = torch.randn(512, d)
    return rows.T @ rows / 512


def _dense(up: Tensor, down: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
    delta = SCALE * (up @ down)
    return (delta * curve(delta)).sum()


def _trace(up: Tensor, down: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    return SCALE**2 * ((up.T @ (gradients @ up)) * ((down @ inputs) @ down.T)).sum()


def _error(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, wanted, strict=True))


def of_step(steps: int) -> dict[str, Any]:
    """LoRA of rank 8 on all linear layers of a Llama of 5 million parameters, 8 sequences of 256 tokens."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    )
    size = sum(p.numel() for p in model.parameters())
    anchor = Anchor.estimate(model, [{"input_ids": torch.randint(0, 4096, (8, 256))}], progress=False)
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    penalty = Penalty(tuned, anchor, strength=1.0)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(0, 4096, (8, 256))

    def step(*, held: bool) -> None:
        tuned(input_ids=ids, labels=ids).loss.backward()
        if held:
            penalty.add_gradient()
        optimizer.step()
        optimizer.zero_grad()

    seconds = interleaved(
        {"plain": lambda: step(held=False), "held": lambda: step(held=True), "penalty": penalty.add_gradient}, steps
    )
    return {
        "tool": "holdfast",
        "case": "step",
        "parameters": size,
        "rank": 8,
        "ms": milliseconds(seconds["held"]),
        "plain_ms": milliseconds(seconds["plain"]),
        "penalty_ms": milliseconds(seconds["penalty"]),
        "ratio": ratio(seconds["held"], seconds["plain"]),
        "against": "the same step without the penalty",
        "steps": steps,
    }


if __name__ == "__main__":
    main()
