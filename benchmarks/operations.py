"""A look at every operation of torch that really runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Hands each operation to `run`, those that consist of others as these.

    Under `torch.inference_mode` torch shows a mode the whole only: `reshape` and `to` without the copies in
    them, `item` without the read.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.run(func, args, kwargs)

    @abstractmethod
    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do the operation and return its result."""
