"""Wait for a condition instead of a number of seconds."""

import time
from collections.abc import Callable

DEADLINE = (
    300.0  # seconds; a busy machine may need many times what an idle one does, and a condition that holds ends it
)


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE, every: float = 0.05) -> None:
    """Return as soon as the condition holds; fail with `what` where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)
