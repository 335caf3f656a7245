"""What ends a command from outside: Ctrl-C, SIGTERM, a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """The first signal raises `KeyboardInterrupt`; all further ones only hurry what is being cleared up.

    So nothing that a command has started is left behind because somebody pressed Ctrl-C twice. A signal that the
    command was started to ignore (`nohup`) stays ignored.
    """

    def __init__(self) -> None:
        self._shielded = False
        self._hurry = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {
                number: signal.signal(number, self._handle)
                for number in SIGNALS
                if signal.getsignal(number) not in (signal.SIG_IGN, None)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def shield(self) -> None:
        """From now on no signal interrupts."""
        self._shielded = True

    @property
    def hurried(self) -> bool:
        """Whether somebody does not want to wait any longer."""
        return self._hurry.is_set()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._shielded:
            self._hurry.set()
            return
        self._shielded = True
        raise KeyboardInterrupt
