"""Array libraries on which to run an implementation; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Function = Callable[..., Any]


class Backend(Protocol):
    """One library at one floating-point type."""

    def array(self, values: np.ndarray) -> Any:
        """Float64 values as this library's array, rounded to its type."""

    def numpy(self, array: Any) -> np.ndarray:
        """An array of this library as float64 (or integer) NumPy."""

    def gradients(self, function: Function, arrays: Sequence[Any]) -> list[np.ndarray] | None:
        """Of the sum of `function(*arrays)` with respect to every array; None where there are none."""


class NumpyBackend:
    """Values only."""

    def __init__(self, dtype: str) -> None:
        if dtype == "bfloat16":
            import ml_dtypes

            self.dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            self.dtype = np.dtype(dtype)

    def array(self, values: np.ndarray) -> np.ndarray:
        """See `Backend`."""
        return values.astype(self.dtype)

    def numpy(self, array: Any) -> np.ndarray:
        """See `Backend`."""
        return _widen(np.asarray(array))

    def gradients(self, function: Function, arrays: Sequence[Any]) -> None:
        """See `Backend`."""
        return None


class TorchBackend:
    """PyTorch, on any device."""

    def __init__(self, dtype: str, device: str = "cpu") -> None:
        import torch

        self.torch, self.dtype, self.device = torch, getattr(torch, dtype), device

    def array(self, values: np.ndarray) -> Any:
        """See `Backend`."""
        return self.torch.tensor(values.copy(), dtype=self.dtype, device=self.device)

    def numpy(self, array: Any) -> np.ndarray:
        """See `Backend`."""
        array = array.detach().cpu()
        return array.double().numpy() if array.is_floating_point() else array.numpy()

    def gradients(self, function: Function, arrays: Sequence[Any]) -> list[np.ndarray]:
        """See `Backend`."""
        leaves = [array.detach().clone().requires_grad_() for array in arrays]
        total = function(*leaves).sum()
        found: Sequence[Any] = [None] * len(leaves)
        if total.requires_grad:  # it does not where the leaves are all cut off
            found = self.torch.autograd.grad(total, leaves, allow_unused=True)
        return [
            np.zeros(tuple(leaf.shape)) if gradient is None else self.numpy(gradient)
            for leaf, gradient in zip(leaves, found, strict=True)
        ]


class JaxBackend:
    """JAX; float64 needs its 64-bit mode."""

    def __init__(self, dtype: str) -> None:
        import jax

        if dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError("float64 needs jax_enable_x64")
        self.jax, self.dtype = jax, dtype

    def array(self, values: np.ndarray) -> Any:
        """See `Backend`."""
        return self.jax.numpy.asarray(values, dtype=self.dtype)

    def numpy(self, array: Any) -> np.ndarray:
        """See `Backend`."""
        return _widen(np.asarray(array))

    def gradients(self, function: Function, arrays: Sequence[Any]) -> list[np.ndarray]:
        """See `Backend`."""

        def total(*given: Any) -> Any:
            return self.jax.numpy.sum(function(*given))

        found = self.jax.grad(total, argnums=tuple(range(len(arrays))))(*arrays)
        return [self.numpy(gradient) for gradient in found]


def backend(name: str, dtype: str, device: str = "cpu") -> Backend:
    """The back end of a name: numpy, torch or jax."""
    if name == "torch":
        return TorchBackend(dtype, device)
    return JaxBackend(dtype) if name == "jax" else NumpyBackend(dtype)


def _widen(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "iu" else array.astype(np.float64)
