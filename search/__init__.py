"""The outside: run spec, study, executors, run folder, report, command line.

From Python: `from search import plan, read_run`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.library import Answer as Answer
    from search.library import plan as plan
    from search.library import read_run as read_run

__all__ = ["Answer", "plan", "read_run"]


def __getattr__(name: str) -> Any:
    """`plan`, `read_run` and `Answer` on first use."""
    if name in __all__:
        from search.kernel_cache import keep_kernels

        keep_kernels()
        from search import library

        return getattr(library, name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
