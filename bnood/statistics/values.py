"""BatchNorm statistics as values: per layer a mean, a variance and a count; interpolated, compared, saved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from safetensors.torch import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bnood.data.atomic import write_beside
from bnood.errors import UserError


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one BatchNorm layer's input."""

    mean: Tensor  # float64 [C]
    var: Tensor  # float64 [C], biased if estimated; running statistics are averages of unbiased ones
    count: int  # elements per channel that were measured; for running statistics the training batches seen

    def check(self, name: str) -> None:
        """Raise ``UserError``, naming the layer, unless a layer can normalise with these."""
        if not all(isinstance(part, Tensor) and not part.is_complex() for part in (self.mean, self.var)):
            wrong = "mean and variance have to be tensors of real numbers"
        elif self.mean.ndim != 1 or self.mean.shape != self.var.shape:
            shapes = f"{list(self.mean.shape)} and {list(self.var.shape)}"
            wrong = f"mean and variance have the shapes {shapes}; each needs one value per channel"
        elif not torch.isfinite(self.mean).all() or not torch.isfinite(self.var).all():
            wrong = "the mean or the variance is NaN or infinite in some channel"
        elif (self.var < 0).any():
            wrong = f"the variance is negative in some channel ({float(self.var.min()):.4g})"
        elif not (isinstance(self.count, Real) and 0 <= self.count < 2**63 and self.count == int(self.count)):
            wrong = f"the count is {self.count}; expected a whole number from 0 to 2^63 - 1"
        else:
            return
        raise UserError(f"layer {name!r}: {wrong}")


class BatchNormStatistics(Mapping[str, LayerStatistics]):
    """Statistics of BatchNorm layers of a model: layer name -> mean, var, count. Copied to the CPU as float64.

    ``passes`` over the data estimated them, and a ``sequential`` estimate ``converged`` unless it ran out of passes.
    Raises ``UserError`` for values that are not finite, a negative variance or count, or a shape other than ``[C]``.
    """

    def __init__(self, layers: Mapping[str, LayerStatistics], passes: int = 0, converged: bool = True) -> None:
        self.passes, self.converged = passes, converged
        self._layers: dict[str, LayerStatistics] = {}
        for name, given in layers.items():
            if not isinstance(given, LayerStatistics):
                raise UserError(f"layer {name!r}: expected LayerStatistics, not {type(given).__name__}")
            given.check(name)
            mean, var = (part.detach().to("cpu", torch.float64, copy=True) for part in (given.mean, given.var))
            self._layers[name] = LayerStatistics(mean, var, given.count)

    def __getitem__(self, name: str) -> LayerStatistics:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"BatchNormStatistics({len(self)} layers, passes={self.passes})"

    def interpolate(self, other: "BatchNormStatistics", share: float) -> "BatchNormStatistics":
        """``(1 - share) * self + share * other``; ``UserError`` for a share outside [0, 1] or other layers."""
        if not (isinstance(share, Real) and 0 <= share <= 1):
            raise UserError(f"the share of the other statistics is {share}; it has to lie between 0 and 1")
        self._require_same_layers(other)
        mixed = {}
        for name in self:
            ours, theirs = self[name], other[name]
            mean, var = torch.lerp(ours.mean, theirs.mean, share), torch.lerp(ours.var, theirs.var, share)
            mixed[name] = LayerStatistics(mean, var, ours.count if share < 0.5 else theirs.count)
        return BatchNormStatistics(mixed)

    def with_prior(self, target: "BatchNormStatistics", prior: float, images: float) -> "BatchNormStatistics":
        """Schneider et al.'s (2020, equation 2) N / (N + n) source + n / (N + n) target; ``self`` is the source."""
        if prior < 0 or images < 0 or prior + images == 0:
            raise UserError(f"prior {prior} and images {images} have to be non-negative and not both zero")
        return self.interpolate(target, images / (prior + images))

    def distance(self, other: "BatchNormStatistics") -> dict[str, tuple[float, float]]:
        """How far ``other`` lies, per layer: root mean squares over channels, 0 where both are constant.

        Of the mean's shift in these statistics' standard deviations, and of the log ratio of standard deviations.
        """
        self._require_same_layers(other)
        tiny = torch.finfo(torch.float64).tiny
        result = {}
        for name in self:
            ours, theirs = self[name], other[name]
            constant = (ours.var <= tiny) & (theirs.var <= tiny)
            shift = (theirs.mean - ours.mean) / ours.var.clamp_min(tiny).sqrt()
            spread = 0.5 * (theirs.var.clamp_min(tiny) / ours.var.clamp_min(tiny)).log()
            shift, spread = (figure.masked_fill(constant, 0.0) for figure in (shift, spread))
            result[name] = (float(shift.square().mean().sqrt()), float(spread.square().mean().sqrt()))
        return result

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: ``<layer>.mean``, ``<layer>.var`` (float64 ``[C]``) and ``<layer>.count``."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            tensors |= {f"{name}.mean": layer.mean.contiguous(), f"{name}.var": layer.var.contiguous()}
            tensors[f"{name}.count"] = torch.tensor(layer.count, dtype=torch.int64)
        # The order of the layers is the order of the network; a safetensors file does not keep it by itself.
        metadata = {"format": "bnood.statistics", "layers": "\n".join(self._layers)}
        write_beside(Path(path), lambda partial: partial.write_bytes(to_safetensors(tensors, metadata)))

    @classmethod
    def load(cls, path: str | Path) -> "BatchNormStatistics":
        """Read what :meth:`save` wrote; UserError if the file is missing, damaged, or holds no statistics."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file of BatchNorm statistics")
        try:
            with safe_open(path, framework="pt") as file:
                layers = {}
                for name in (file.metadata() or {})["layers"].split("\n") if file.keys() else ():
                    mean, var, count = (file.get_tensor(f"{name}.{figure}") for figure in ("mean", "var", "count"))
                    layers[name] = LayerStatistics(mean, var, int(count))
            return cls(layers)
        except Exception as error:  # safetensors raises its own class, which it does not export
            raise UserError(f"{path} does not hold BatchNorm statistics saved by bnood ({error})") from error

    def _require_same_layers(self, other: "BatchNormStatistics") -> None:
        if alone := sorted(self._layers.keys() ^ other._layers.keys()):
            raise UserError(f"these statistics are of another model: layer {alone[0]!r} is in only one of the two")
        for name in self:
            ours, theirs = len(self[name].mean), len(other[name].mean)
            if ours != theirs:
                raise UserError(f"statistics of another model: layer {name!r} has {ours} or {theirs} channels")
