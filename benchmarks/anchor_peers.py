"""Other curvature libraries on the anchor benchmark's workload, each through its own public interface.

    pip install --no-deps -r benchmarks/peers.txt      # without their hard dependency on torchvision

One file a library in `peers/`; every case covers the 28 linear layers of the blocks. A library that is not installed
or fails is reported with its error.
"""

import copy
import logging
import warnings
from collections.abc import Collection

from peers import with_asdl, with_backpack, with_curvlinops, with_kronfluence, with_laplace, with_nngeometry
from peers.peer import Prepare, Prepared, targets
from torch import Tensor, nn

__all__ = ["PEERS", "Key", "Prepared", "make", "prepare", "targets"]
Key = tuple[str, str, str, str]  # tool, case, labels, per

LIBRARIES = {
    "curvlinops": with_curvlinops,
    "kronfluence": with_kronfluence,
    "laplace-torch": with_laplace,
    "nngeometry": with_nngeometry,
    "asdl": with_asdl,
    "backpack": with_backpack,
}
PEERS: dict[Key, Prepare] = {
    (tool, *case): prepare for tool, library in LIBRARIES.items() for case, prepare in library.CASES.items()
}


def make(key: Key, model: nn.Module, ids: Tensor) -> Prepared:
    """One of them, ready to run; some wrap the modules of the model they are given."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    return PEERS[key](model, ids, key[2])


def prepare(
    model: nn.Module, ids: Tensor, only: Collection[str] | None = None
) -> tuple[dict[Key, Prepared], list[dict[str, str]]]:
    """Everything that runs, by key, and what does not, with the reason; `only` names cases."""
    ready, skipped = {}, []
    for key in PEERS:
        if only and key[1] not in only:
            continue
        try:
            peer = make(key, copy.deepcopy(model), ids)
            peer.run()
        except Exception as error:  # whatever a library raises is what is reported of it
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            skipped.append({**dict(zip(("tool", "case", "labels", "per"), key, strict=True)), "reason": reason[:300]})
        else:
            ready[key] = peer
    return ready, skipped
