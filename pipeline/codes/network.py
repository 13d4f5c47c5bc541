"""The recurrent binarizer as a torch network: blocks, straight-through gradients, and folding into a `Binarizer`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.codes.binarizer import Binarizer, BinarizerSpec, Block, on_grid

_START_STEP = 0.5  # root mean square of what a sign is taken of at the start: inside ±1, where gradients pass


class _Sign(torch.autograd.Function):
    """±1 with s(0) = −1; the gradient passes where |z| ≤ 1 (out of place: it is not ours to change)."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:  # type: ignore[no-untyped-def] # noqa: ANN001 - torch's own
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype) * 2 - 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def] # noqa: ANN001
        (z,) = ctx.saved_tensors
        return torch.where(z.abs() <= 1, gradient, 0.0)


class BinarizerNetwork(nn.Module):
    """The blocks W, B_i, R_i of one binarizer, and its query projection.

    hidden: width of a hidden layer (0: blocks are linear); layers: hidden layers a block, each linear, batch
    normalisation, ReLU, and start Xavier-normal with zero biases; linear blocks start as those of `start`.
    """

    def __init__(self, start: Binarizer, hidden: int, layers: int) -> None:
        super().__init__()
        spec = start.spec
        later = spec.bits - 1
        self.first = _block(spec.input_dims, spec.dims, hidden, layers)
        self.rebuild = nn.ModuleList(_block(spec.dims, spec.input_dims, hidden, layers) for _ in range(later))
        self.refine = nn.ModuleList(_block(spec.input_dims, spec.dims, hidden, layers) for _ in range(later))
        self.query = nn.Parameter(torch.tensor(start.query))
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(start.mean))
        if not hidden:
            _copy(self.first, start.first, _START_STEP * float(np.sqrt(spec.input_dims)))
            for plane in range(later):
                _copy(self.rebuild[plane], start.rebuild[plane], 1.0)
                gain = _START_STEP * float(np.sqrt(spec.input_dims)) * 2.0 ** (plane + 1)
                _copy(self.refine[plane], start.refine[plane], gain)

    def forward(self, unit: Tensor) -> Tensor:
        """Codes float[n, dims] in (−2, 2) of unit vectors float[n, input_dims], with straight-through gradients."""
        code: Tensor = _Sign.apply(self.first(unit))  # type: ignore[no-untyped-call]
        for n, (rebuild, refine) in enumerate(zip(self.rebuild, self.refine, strict=True), 1):
            rebuilt = nn.functional.normalize(rebuild(code), dim=1)
            code = code + 2.0**-n * _Sign.apply(refine(unit - rebuilt))  # type: ignore[no-untyped-call]
        return code

    def scaled(self, unit: Tensor, code: Tensor) -> Tensor:
        """Codes times |y|² / ⟨code, y⟩: what a float query is multiplied with."""
        target = (unit - self.mean) @ self.query.T
        along = (code * target).sum(dim=1, keepdim=True).clamp_min(1e-3)
        return code * (target.square().sum(dim=1, keepdim=True) / along)

    def fold(self, spec: BinarizerSpec) -> Binarizer:
        """What was trained, on the grid, batch normalisation folded into the layers before it."""
        return Binarizer(
            spec,
            _fold(self.first, 1.0),
            tuple(_fold(block, 2.0) for block in self.rebuild),
            tuple(_fold(block, 2.0) for block in self.refine),
            self.query.detach().numpy().copy(),
            self.mean.numpy().copy(),
        )


def _block(wide: int, out: int, hidden: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers if hidden else 0):
        parts += [nn.Linear(wide, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        wide = hidden
    parts.append(nn.Linear(wide, out))
    for part in parts:
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)
    return nn.Sequential(*parts)


def _copy(block: nn.Module, start: Block, gain: float) -> None:
    (linear,) = block.children()
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(start[0].weight) * gain)
        linear.bias.copy_(torch.tensor(start[0].bias) * gain)


def _fold(block: nn.Module, largest: float) -> Block:
    layers: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for part in block.children():
        if isinstance(part, nn.Linear):
            layers.append((_array(part.weight), _array(part.bias)))
        elif isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            gain = _array(part.weight) / np.sqrt(_array(part.running_var) + part.eps)
            weight, bias = layers.pop()
            shifted = (bias - _array(part.running_mean)) * gain + _array(part.bias)
            layers.append((weight * gain[:, None], shifted))
    return on_grid(layers, largest)


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().double().numpy()
    return array
