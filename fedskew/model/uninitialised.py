"""Modules that are built to be filled at once: no time is spent on weights that are loaded next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutInitialisation(TorchFunctionMode):
    """Saves the time of drawing weights that are loaded next. Buffers are no parameters and computed as always."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """In-place operations on parameters do nothing."""
        target = args[0] if args else (kwargs or {}).get("tensor")
        name = getattr(func, "__name__", "")
        if isinstance(target, nn.Parameter) and name.endswith("_") and not name.endswith("__"):
            return target
        return func(*args, **(kwargs or {}))
