"""Inside each layer, the dear directions shrunk most."""

from collections.abc import Mapping

import torch
from torch import Tensor

from holdfast import catalogue
from holdfast.curvature.curvature import Coupled, Curvature
from holdfast.curvature.spectrum import Spectrum
from holdfast.errors import HoldfastError
from holdfast.fitting import shrinkage
from holdfast.fitting.layers import check_apart
from holdfast.fitting.move import Move
from holdfast.fitting.moving import Moving, squared_length
from holdfast.fitting.way import Way
from holdfast.fitting.within import Within
from holdfast.shifts.sparse import Sparse

CLOSE = 1e-6  # of the budget: each further digit forms every layer's shift once more
RAISES = 6  # corrections of the aim for what the adapter's rank changes of the forecast


class Project(Way):
    """D'_l, the minimum of sum w_l |D'_l - D_l|^2 under a forecast of B, w_l = n_l / |D_l|^2.

    (w I + mu C) D' = w D: in C's eigenbasis, where D has the coordinates d_ij and C the values L_ij,

        d'_ij = d_ij / (1 + mu / w L_ij),

    a Wiener filter, with one mu for all layers and coordinates. Scaling (a I) and factors of layers are what is left
    of it when D' must stay a multiple of D, so for the same forecast D' is never further from D than theirs. A LoRA's
    D' is not of its rank: it is cut to it (`AdapterMove.put`), and the aim is corrected for what that changes, so that
    the forecast of what is written is B within 0.1 %, never above. SIFT's D' is the minimum among shifts of its
    entries alone (`fitting.within`). D is formed, one layer at a time.

    Raises:
        HoldfastError: a curvature without an eigenbasis of its own, several adapters at once.
    """

    name = "project"
    what = "each direction by its price"

    def __init__(self, moving: Moving, worths: Mapping[str, float]) -> None:
        super().__init__(moving, worths)
        check_apart(moving)
        moving.scale(1.0)
        self.spectra = _spectra(moving)
        self.lengths = moving.squared_lengths()
        self.weights = {name: worths[name] / length if length else 0.0 for name, length in self.lengths.items()}
        self.start = sum(worths.values()) / (moving.forecast() or 1.0)

    @torch.no_grad()
    def aim(self, limit: float) -> dict[str, float]:
        self.moving.scale(1.0)
        if self.moving.forecast() <= limit:
            return dict.fromkeys(self.moving.moves, 1.0)
        aimed = limit
        for _ in range(RAISES):
            self._write(aimed)
            found = self.moving.forecast()
            if 0.999 * limit <= found <= limit or not found:
                break
            aimed *= 0.9995 * limit / found
        if found > limit:
            self._shorten(limit / found)
        return {
            name: (squared_length(move.shift()) / self.lengths[name]) ** 0.5 if self.lengths[name] else 1.0
            for name, move in self.moving.moves.items()
        }

    def _write(self, limit: float) -> None:
        """The filter whose forecast is `limit` before any rank is cut."""
        self.moving.scale(1.0)
        if self._forecast(0.0) <= limit:
            return
        multiplier = shrinkage.fitting_multiplier(self._forecast, limit, start=self.start, close=CLOSE)
        for name, move in self.moving.moves.items():
            self.lost[name] = move.put(self.spectra[name].back(self._filtered(name, multiplier)))

    def _forecast(self, multiplier: float) -> float:
        """1/2 sum over layers of L_ij d'_ij^2, of the shifts that stand in the model: those that came."""
        return 0.5 * sum(
            float((spectrum.values * self._filtered(name, multiplier).square()).sum(dtype=torch.float64))
            for name, spectrum in self.spectra.items()
        )

    def _filtered(self, name: str, multiplier: float) -> Tensor:
        """d', (out, in)."""
        spectrum, weight = self.spectra[name], self.weights[name]
        delta = spectrum.coordinates(self.moving.shift(name).matrix())
        if not weight:  # worth nothing: what costs anything goes
            return torch.where(spectrum.values > 0, 0.0, delta) if multiplier else delta
        return delta / (1 + multiplier / weight * spectrum.values)

    def _shorten(self, share: float) -> None:
        """Multiply the forecast of what is written by `share`."""
        for name, move in self.moving.moves.items():
            move.put(share**0.5 * (1 - 1e-6) * self.moving.shift(name).matrix())


def _spectra(moving: Moving) -> dict[str, Spectrum | Within]:
    several = [move for move in moving.moves.values() if move.adapters > 1]
    if several:
        raise HoldfastError(
            "several active adapters move one layer, and a filtered shift can't be shared out among them",
            remedy="activate one adapter at a time, or take --how layers",
        )
    curvatures = {} if moving.prices is None else moving.prices.beside_weights(damped=False)
    spectra = {name: _basis(curvature, moving.moves[name]) for name, curvature in curvatures.items()}
    found = {name: spectrum for name, spectrum in spectra.items() if spectrum is not None}
    if len(found) < len(spectra):
        raise HoldfastError(
            f"an anchor of curvature {moving.anchor.kind!r} has no eigenbasis to filter a shift in",
            wanted=f"one of {', '.join(n for n in catalogue.names('curvature') if _has_spectrum(n))}",
            remedy="measure one of these, or take --how layers",
        )
    return found


@torch.no_grad()
def _basis(curvature: Curvature, move: Move) -> Spectrum | Within | None:
    shift = move.shift()
    if not isinstance(shift, Sparse):
        return curvature.spectrum()
    return None if isinstance(curvature, Coupled) else Within.of(curvature, shift)


def _has_spectrum(kind: str) -> bool:
    return catalogue.curvature(kind).spectrum is not Curvature.spectrum
