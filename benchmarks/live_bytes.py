"""How much tensors hold, counted tensor by tensor; a process's own memory is known to some MB only."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves

from benchmarks.operations import Operations


class LiveBytes:
    """Bytes of the storages that operations of some threads have made and that are still there.

    What an operation allocates inside and gives back before it returns is not seen.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._lock = threading.RLock()  # a storage may end while another one is counted
        self._counted: dict[int, weakref.finalize[..., Any]] = {}  # id of the storage -> what ends it

    def count_here(self) -> None:
        """From now on the calling thread counts, as long as it lives."""
        _Counting(self).__enter__()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """The calling thread counts inside of this block."""
        with _Counting(self):
            yield

    def saw(self, storage: UntypedStorage) -> None:
        with self._lock:
            key = id(storage)
            if key in self._counted:
                return
            size = storage.nbytes()
            self._counted[key] = weakref.finalize(storage, self._ended, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _ended(self, key: int, size: int) -> None:
        with self._lock:
            del self._counted[key]
            self.now -= size


class _Counting(Operations):
    def __init__(self, ledger: LiveBytes) -> None:
        super().__init__()
        self._ledger = ledger

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._ledger.saw(leaf.untyped_storage())
        return result
