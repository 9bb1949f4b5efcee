"""Other curvature libraries on the anchor benchmark's workload, each through its own public interface.

    pip install --no-deps -r benchmarks/peers.txt      # without their hard dependency on torchvision

One function per library and structure; every one covers the 28 linear layers of the blocks, one row per token
("expand"), unless its `kind` says otherwise. A library that is not installed or fails is reported with its error.
"""

import atexit
import copy
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Prepared:
    """A library ready to be timed."""

    run: Callable[[], object]
    kind: str  # what it sums
    gradients: Callable[[], dict[str, Tensor]] | None = None  # layer -> G, of the last run


Prepare = Callable[[nn.Module, Tensor, str], Prepared]


def prepare(model: nn.Module, ids: Tensor) -> tuple[dict[tuple[str, str, str], Prepared], list[dict[str, str]]]:
    """Everything that runs, by (tool, case, labels), and what does not, with the reason."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    ready, skipped = {}, []
    for (tool, case, labels), make in PEERS.items():
        own = copy.deepcopy(model)  # some wrap the modules they are given
        try:
            peer = make(own, ids, labels)
            peer.run()
        except Exception as error:  # whatever a library raises is what is reported of it
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            skipped.append({"tool": tool, "case": case, "labels": labels, "reason": reason[:300]})
        else:
            ready[tool, case, labels] = peer
    return ready, skipped


class Classes(nn.Module):
    """Token ids to logits as these libraries want them: (batch, classes, positions), the last position left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) to (batch, vocabulary, length - 1)."""
        return self.model(input_ids=ids).logits[:, :-1].transpose(1, 2)


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}


def curvlinops_kronecker(model: nn.Module, ids: Tensor, labels: str) -> Prepared:
    """KFACLinearOperator with hooks; weight gradients are computed and dropped."""
    from curvlinops import FisherType, KFACLinearOperator

    data = [(batch, batch[:, 1:]) for batch in ids.split(8)]
    last: list[Any] = []

    def run() -> None:
        operator = KFACLinearOperator(
            Classes(model),
            nn.CrossEntropyLoss(reduction="sum"),
            [layer.weight for layer in targets(model).values()],
            data,
            fisher_type=FisherType.MC if labels == "sampled" else FisherType.EMPIRICAL,
            check_deterministic=False,
            num_data=len(ids),
            num_per_example_loss_terms=ids.shape[1] - 1,
        )
        operator.compute_kronecker_factors()
        last[:] = [operator]

    def gradients() -> dict[str, Tensor]:
        return {name.removeprefix("model."): g for name, g in last[0]._gradient_covariances.items()}

    return Prepared(run, "Kronecker, per token", gradients)


def kronfluence_factors(model: nn.Module, ids: Tensor, labels: str, strategy: str) -> Prepared:
    """Analyzer: frozen weights, factors written to disk."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
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
            return list(names)

    names = targets(model)
    task, folder = Language(), tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wrapped = prepare_model(model, task)
    analyzer = Analyzer("benchmark", wrapped, task, cpu=True, disable_tqdm=True, output_dir=folder)
    options = FactorArguments(strategy=strategy, use_empirical_fisher=labels == "data")
    fit = analyzer.fit_lambda_matrices if strategy == "diagonal" else analyzer.fit_covariance_matrices

    def run() -> None:
        fit(
            "factors",
            TensorDataset(ids),
            per_device_batch_size=8,
            factor_args=options,
            overwrite_output_dir=True,
        )

    def gradients() -> dict[str, Tensor]:
        return analyzer.load_covariance_matrices("factors")["gradient_covariance"]

    if strategy == "diagonal":
        return Prepared(run, "diagonal, per sequence")
    return Prepared(run, "Kronecker, per token", gradients)


def laplace_structure(model: nn.Module, ids: Tensor, labels: str, structure: str) -> Prepared:
    """Laplace over curvlinops; eigendecomposes the Kronecker factors in `fit`."""
    from laplace import Laplace
    from laplace.curvature.curvlinops import CurvlinopsEF, CurvlinopsGGN

    model.requires_grad_(False)
    for layer in targets(model).values():
        layer.weight.requires_grad_(True)
    loader = DataLoader(TensorDataset(ids, ids[:, 1:]), batch_size=8)
    backend: dict[str, Any] = {"backend": CurvlinopsEF}
    if labels == "sampled":
        backend = {"backend": CurvlinopsGGN, "backend_kwargs": {"stochastic": True}}

    def run() -> None:
        laplace = Laplace(Classes(model), "classification", "all", structure, **backend)
        laplace.fit(loader)

    return Prepared(
        run, "Kronecker, per token, and its eigenvectors" if structure == "kron" else "diagonal, per sequence"
    )


def nngeometry_structure(model: nn.Module, ids: Tensor, labels: str, structure: str) -> Prepared:
    """FIM_MonteCarlo with the library's variant for logits with positions."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatDiag, PMatKFAC

    layers = LayerCollection()
    for name, module in targets(model).items():
        layers.add_layer(name, LayerCollection._module_to_layer(module))
    loader = DataLoader(TensorDataset(ids), batch_size=8)
    representation = {"kron": PMatKFAC, "diag": PMatDiag}[structure]
    function = Classes(model)

    def run() -> object:
        return FIM_MonteCarlo(
            model,
            loader,
            representation,
            variant="segmentation_logits",
            function=lambda batch: function(batch).unsqueeze(-1),
            layer_collection=layers,
        )

    return Prepared(run, "per token")


def _with(make: Callable[..., Prepared], option: str) -> Prepare:
    return lambda model, ids, labels: make(model, ids, labels, option)


PEERS: dict[tuple[str, str, str], Prepare] = {
    ("curvlinops", "kronecker", "sampled"): curvlinops_kronecker,
    ("curvlinops", "kronecker", "data"): curvlinops_kronecker,
    ("kronfluence", "kronecker", "sampled"): _with(kronfluence_factors, "kfac"),
    ("kronfluence", "kronecker", "data"): _with(kronfluence_factors, "kfac"),
    ("kronfluence", "diagonal", "sampled"): _with(kronfluence_factors, "diagonal"),
    ("kronfluence", "diagonal", "data"): _with(kronfluence_factors, "diagonal"),
    ("laplace-torch", "kronecker", "sampled"): _with(laplace_structure, "kron"),
    ("laplace-torch", "kronecker", "data"): _with(laplace_structure, "kron"),
    ("laplace-torch", "diagonal", "data"): _with(laplace_structure, "diag"),
    ("nngeometry", "kronecker", "sampled"): _with(nngeometry_structure, "kron"),
    ("nngeometry", "diagonal", "sampled"): _with(nngeometry_structure, "diag"),
}
