"""A request to stop is an exception, so that nothing unfinished is left behind."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Batch systems stop a job with SIGTERM: treat it like Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    # Only the main thread can set a handler, and only one that Python knows can come back.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
