"""Signals by which a scheduler or a closed terminal ends a program: what is worth it is saved first."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# SIGUSR1 and SIGUSR2: by SLURM's --signal and Grid Engine's -notify, as a warning; SIGXCPU: at a limit of processor time.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Terminated(BaseException):
    """The program was told to end. No error, as KeyboardInterrupt is none: whoever catches it cleans up and raises it again.

    number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(signal.Signals(number).name)
        self.number = number


_arrived: list[int] = []  # the last signal, until it has done its work


def raise_when_told_to_end() -> None:
    """From now on the signals raise `Terminated` in the main thread. A signal that is ignored stays so, as nohup wants it."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if number := _number_of(unraisable.exc_value):
            _send_again(number)
        else:
            before(unraisable)

    sys.unraisablehook = hook


def _number_of(error: BaseException | None) -> int | None:
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    return error.number if isinstance(error, Terminated) else None


def _send_again(number: int) -> None:
    """Python swallows what is raised while a destructor or a callback of the garbage collector runs, which is soon over."""

    def send() -> None:
        main = threading.main_thread().ident
        # Not where `postponed` has raised it meanwhile: it would end what is being saved.
        if main is not None and (number == signal.SIGINT or _arrived):
            signal.pthread_kill(main, number)

    timer = threading.Timer(0.1, send)
    timer.daemon = True
    timer.start()


def _raise(number: int, frame: FrameType | None) -> None:
    _note(number, frame)  # should it be swallowed, the next `postponed` knows of it
    raise Terminated(number)


def _note(number: int, frame: FrameType | None) -> None:
    _arrived[:] = [number]


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Inside, the signals raise nothing; one that came meanwhile, or was swallowed before, raises `Terminated` at the end.

    Nothing happens in a thread beside the main one, where Python can't know of signals, and with several processes, where JAX
    listens to them.
    """
    import jax  # not at the top: commands import this module, and --help needs no JAX

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    replaced = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in replaced:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
    if _arrived:
        raise Terminated(_arrived.pop())
