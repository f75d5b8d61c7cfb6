"""Ctrl-C and other requests to stop: obeyed at once or, in a training, after its step and a checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Stopped(SystemExit):
    """A signal has asked the script to end: Ctrl-C, SIGTERM or SIGHUP. Its code is 128 + the signal's number."""

    def __init__(self) -> None:
        super().__init__(128 + (_signals.number or signal.SIGTERM))


class _Signals:
    number, wait = 0, False  # the signal that has come; whether `signals_wait` holds it back


_signals = _Signals()


def stop_on_signals() -> None:
    """From here on a signal ends this process by Stopped, at once or where `signals_wait` ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        here = threading.current_thread() is threading.main_thread()
        if here and number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    again, _signals.number = _signals.number, number
    with suppress(OSError):  # print may be what was interrupted
        os.write(2, f"\n{signal.Signals(number).name}: stopping\n".encode())
    if again or not _signals.wait:
        raise Stopped


def stop_requested() -> bool:
    """Return whether a signal has asked the script to end."""
    return _signals.number > 0


@contextmanager
def signals_wait(wait: bool = True) -> Iterator[None]:
    """Hold back a first signal until the end of the block, which looks at `stop_requested`; with False, do not.

    Raises Stopped, also for a signal that came before.
    """
    before, _signals.wait = _signals.wait, wait
    try:
        if stop_requested() and not wait:
            raise Stopped
        yield
    finally:
        _signals.wait = before
    if stop_requested() and not before:
        raise Stopped
