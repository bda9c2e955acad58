"""Ctrl-C and the scheduler's SIGTERM: what has begun is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so with everything saved; the message says how far it is."""


@contextmanager
def at_the_end(state: str) -> Iterator[None]:
    """Put off an interruption until the block has ended, then raise `Interrupted` with `state`; a second one acts now.

    Other threads than the main one cannot, and do nothing of this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("interrupted at once; the same command goes on after the last saved batch")
        asked.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if asked:
        raise Interrupted(f"interrupted; {state}, the same command goes on from there")
