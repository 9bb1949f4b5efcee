"""nngeometry: `FIM_MonteCarlo` with the library's variant for logits with positions."""

from functools import partial

from peers.peer import Case, Classes, Prepare, Prepared, targets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def fisher(model: nn.Module, ids: Tensor, labels: str, *, structure: str) -> Prepared:
    """One of the library's representations; of PMatEKFAC the moments are re-estimated."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import pspace

    layers = LayerCollection()
    for name, module in targets(model).items():
        layers.add_layer(name, LayerCollection._module_to_layer(module))
    loader = DataLoader(TensorDataset(ids), batch_size=8)
    function = Classes(model)

    def run() -> None:
        found = FIM_MonteCarlo(
            model,
            loader,
            getattr(pspace, structure),
            variant="segmentation_logits",
            function=lambda batch: function(batch).unsqueeze(-1),
            layer_collection=layers,
        )
        if structure == "PMatEKFAC":
            found.update_diag(loader)

    return Prepared(run, "per token")


CASES: dict[Case, Prepare] = {
    (case, "sampled", "token"): partial(fisher, structure=structure)
    for case, structure in (("kronecker", "PMatKFAC"), ("diagonal", "PMatDiag"), ("eigen", "PMatEKFAC"))
}
