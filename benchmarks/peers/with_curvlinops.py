"""curvlinops: linear operators over a loss module and batches of (inputs, targets)."""

from typing import Any

from peers.peer import Case, Classes, Prepare, Prepared, targets
from torch import Tensor, nn


def kronecker(model: nn.Module, ids: Tensor, labels: str) -> Prepared:
    """KFACLinearOperator with hooks; weight gradients are computed and dropped."""
    from curvlinops import KFACLinearOperator

    last: list[Any] = []

    def run() -> None:
        last[:] = [_operator(KFACLinearOperator, model, ids, labels)]
        last[0].compute_kronecker_factors()

    def apply(layer: str, delta: Tensor) -> Tensor:
        inputs, gradients = last[0]._input_covariances, last[0]._gradient_covariances
        return gradients[f"model.{layer}"] @ delta @ inputs[f"model.{layer}"]

    return Prepared(run, "Kronecker, per token", apply)


def eigen(model: nn.Module, ids: Tensor, labels: str) -> Prepared:
    """EKFACLinearOperator: factors, their eigenvectors, and the second moments in that basis."""
    from curvlinops import EKFACLinearOperator

    def run() -> None:
        _operator(EKFACLinearOperator, model, ids, labels).compute_kronecker_factors()

    return Prepared(run, "Kronecker, per token; its eigenvectors; squares in that basis, per sequence")


def _operator(make: Any, model: nn.Module, ids: Tensor, labels: str) -> Any:
    from curvlinops import FisherType

    return make(
        Classes(model),
        nn.CrossEntropyLoss(reduction="sum"),
        [layer.weight for layer in targets(model).values()],
        [(batch, batch[:, 1:]) for batch in ids.split(8)],
        fisher_type=FisherType.MC if labels == "sampled" else FisherType.EMPIRICAL,
        check_deterministic=False,
        num_data=len(ids),
        num_per_example_loss_terms=ids.shape[1] - 1,
    )


CASES: dict[Case, Prepare] = {
    ("kronecker", "sampled", "token"): kronecker,
    ("kronecker", "data", "token"): kronecker,
    ("eigen", "sampled", "sequence"): eigen,
}
