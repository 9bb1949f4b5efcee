"""kronfluence: an Analyzer over a task with the summed loss; weights frozen, factors written to disk."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peers.peer import Case, Prepare, Prepared, targets
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NAME = "factors"
KINDS = {
    "kfac": "Kronecker, per token",
    "ekfac": "Kronecker, per token; its eigenvectors; squares in that basis, per sequence",
    "diagonal": "diagonal, per sequence",
}


def factors(model: nn.Module, ids: Tensor, labels: str, *, strategy: str) -> Prepared:
    """One of the library's strategies, as its users fit it."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments

    task, folder = _task(list(targets(model))), tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wrapped = prepare_model(model, task)
    analyzer = Analyzer("benchmark", wrapped, task, cpu=True, disable_tqdm=True, output_dir=folder)
    options = FactorArguments(strategy=strategy, use_empirical_fisher=labels == "data")
    fitting = {"per_device_batch_size": 8, "factor_args": options, "overwrite_output_dir": True}

    def run() -> None:
        if strategy != "diagonal":
            analyzer.fit_covariance_matrices(NAME, TensorDataset(ids), **fitting)
        if strategy == "ekfac":
            analyzer.perform_eigendecomposition(NAME, factor_args=options, overwrite_output_dir=True)
        if strategy != "kfac":
            analyzer.fit_lambda_matrices(NAME, TensorDataset(ids), **fitting)

    apply: dict[str, Callable[[str, Tensor], Tensor]] = {
        "kfac": lambda layer, delta: _kronecker(analyzer.load_covariance_matrices(NAME), layer, delta),
        "diagonal": lambda layer, delta: analyzer.load_lambda_matrices(NAME)["lambda_matrix"][layer] * delta,
    }
    return Prepared(run, KINDS[strategy], apply.get(strategy))


def _kronecker(stored: Any, layer: str, delta: Tensor) -> Tensor:
    return stored["gradient_covariance"][layer] @ delta @ stored["activation_covariance"][layer]


def _task(names: list[str]) -> Any:
    from kronfluence.task import Task

    class Language(Task):
        """The summed loss; the labels are drawn by the user's code in this library."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(input_ids=batch[0]).logits[:, :-1].flatten(0, 1)
            drawn = batch[0][:, 1:].flatten()
            if sample:
                drawn = torch.multinomial(logits.detach().softmax(dim=1), 1).squeeze(1)
            return F.cross_entropy(logits, drawn, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

    return Language()


CASES: dict[Case, Prepare] = {
    (case, labels, per): partial(factors, strategy=strategy)
    for strategy, case, per in (
        ("kfac", "kronecker", "token"),
        ("diagonal", "diagonal", "sequence"),
        ("ekfac", "eigen", "sequence"),
    )
    for labels in ("sampled", "data")
}
