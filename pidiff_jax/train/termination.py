"""SIGTERM and SIGHUP, by which a scheduler or a closed terminal ends a program: what is worth it is saved first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """The program was told to end. No error, as KeyboardInterrupt is none: whoever catches it cleans up and raises it again.

    number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(signal.Signals(number).name)
        self.number = number


_arrived: list[int] = []


def raise_when_told_to_end() -> None:
    """From now on the signals raise `Terminated` in the main thread. A signal that is ignored stays so, as nohup wants it."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)  # where Python runs a destructor just then, it swallows what is raised
    raise Terminated(number)


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], int | None]]:
    """Inside, the signals raise nothing: the function that this gives returns the one that came, now or before, or None.

    It always returns None in a thread beside the main one, where Python can't know of signals, and with several processes,
    where JAX listens to them.
    """
    import jax  # not at the top: commands import this module, and --help needs no JAX

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    replaced = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in replaced:
        signal.signal(number, lambda number, frame: _arrived.append(number))
    try:
        yield lambda: _arrived[0] if _arrived else None
    finally:
        _arrived.clear()
        for number, handler in replaced.items():
            signal.signal(number, handler)
