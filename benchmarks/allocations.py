"""What operations allocate, counted as torch dispatches them: exact, also for tensors without data (`meta`)."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the memory of every tensor that is made inside, until the last view of it is gone.

    Attributes:
        live: Bytes in use now of what was made inside.
        peak: The most of them at any time.
        largest: Bytes of the largest single tensor.
        sizes: Bytes of each, in the order they were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.sizes: list[int] = []
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and _storage(leaf)._cdata not in before | self._known:
                self._add(_storage(leaf))
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.sizes.append(size)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return (tensor._values() if tensor.is_sparse else tensor).untyped_storage()
