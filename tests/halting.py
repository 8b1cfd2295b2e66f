"""A study that waits to be stopped: on a busy machine it might end before the signal that a test sends it."""

from __future__ import annotations

import signal
import time
from typing import Any

from search.journal import Journal

WAIT_S = 240.0  # more than any test waits for


def halt_after(num: int) -> None:
    """Makes this process say `halted` and wait once its journal has so many more evaluations; Ctrl-C ends the wait.

    What a shell starts in the background begins with Ctrl-C ignored; here it never is.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    append, appended = Journal.append, []

    def halting(self: Journal, *finished: Any) -> None:
        append(self, *finished)
        appended.append(finished)
        if len(appended) == num:
            print("halted", flush=True)
            time.sleep(WAIT_S)

    Journal.append = halting  # type: ignore[assignment, method-assign]
