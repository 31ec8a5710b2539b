"""What the mathematics needs beyond the Python array API standard, without importing any framework."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace, is_cupy_array, is_jax_array, is_torch_array

from pact_plugin.errors import ShapeError

Array = Any
"""An array of any library that `array_api_compat` knows: NumPy, PyTorch, JAX, CuPy, ..."""


def promote(**arrays: Array) -> tuple[ModuleType, list[Array]]:
    """Bring named floating-point arrays of one library to the precision in which to compute.

    That is the widest of their types, and float32 at least: a sum of bfloat16 probabilities has two digits.

    Args:
        **arrays: The arrays, by the name that an error should give them.

    Returns:
        The library's array namespace, and the arrays in the order given.

    Raises:
        ShapeError: If one is not an array, not of a floating-point type, or not of the others' library.
    """
    try:
        xp = array_namespace(*arrays.values())
    except TypeError as error:
        kinds = ", ".join(
            type(array).__module__ + "." + type(array).__qualname__ for array in arrays.values()
        )
        raise ShapeError(
            "the arguments are not arrays of one library",
            key=", ".join(arrays),
            value=kinds,
            remedy="Pass NumPy, PyTorch or JAX arrays, all of the same library.",
        ) from error
    for name, array in arrays.items():
        if "float" not in str(array.dtype):  # also true of types that NumPy does not know, such as bfloat16
            raise ShapeError(
                "the array does not hold floating-point numbers",
                key=name,
                value=str(array.dtype),
                remedy="Pass logits or log-probabilities.",
            )
    dtype = xp.result_type(xp.float32, *(array.dtype for array in arrays.values()))
    return xp, [xp.astype(array, dtype, copy=False) for array in arrays.values()]


def as_array_like(values: Any, like: Array, xp: ModuleType) -> Array:
    """`values` (a sequence or an array) as an array of `like`'s type and device, without gradient."""
    device = like.device if is_torch_array(like) else None  # elsewhere a new array goes where it is needed
    return xp.asarray(stop_gradient(values), dtype=like.dtype, device=device)


def require_shape(name: str, array: Array, expected: tuple[int, ...], meaning: str) -> None:
    """Raise a `ShapeError` that names the argument unless `array` has the expected shape.

    Args:
        name: The argument's name.
        array: The array.
        expected: The shape it must have.
        meaning: That shape in words, such as "[..., K], as student_logprobs".
    """
    if tuple(array.shape) != tuple(expected):
        raise ShapeError(
            f"the shape should be {tuple(expected)}",
            key=name,
            value=tuple(array.shape),
            remedy=f"Pass {meaning}.",
        )


def stop_gradient(array: Array) -> Array:
    """The same values, which no gradient passes.

    An array that exists shows that its framework is already imported, so none is imported here.
    """
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        return sys.modules["jax"].lax.stop_gradient(array)
    return array  # the other libraries do not differentiate


def log_softmax(xp: ModuleType, logits: Array) -> Array:
    """Log-probabilities along the last axis, in nats."""
    shifted = logits - stop_gradient(xp.max(logits, axis=-1, keepdims=True))
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def values_known(array: Array) -> bool:
    """Whether values can be looked at: not while `jax.jit` or `torch.compile` traces the computation."""
    if is_jax_array(array):
        return not isinstance(array, sys.modules["jax"].core.Tracer)
    if is_torch_array(array):
        return not sys.modules["torch"].compiler.is_compiling()
    return True


def values_at_hand(array: Array) -> bool:
    """Whether values can be looked at without waiting for an accelerator; also true of a sequence of numbers."""
    if is_torch_array(array):
        return array.device.type == "cpu" and values_known(array)
    if is_jax_array(array):
        return values_known(array) and all(device.platform == "cpu" for device in array.devices())
    return not is_cupy_array(array)


def require_tokens(name: str, array: Array) -> None:
    """Raise a `ShapeError` that names the argument unless it is [..., K] with K of at least 1."""
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ShapeError(
            "there is no safety token",
            key=name,
            value=tuple(array.shape),
            remedy="Pass [..., K] with K of at least 1.",
        )
