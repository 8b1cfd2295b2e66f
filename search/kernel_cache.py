"""Where compiled kernels are kept: one folder per content of the kernel sources.

numba recompiles when the file of the outermost function changes, not when a file does that this one calls; after an
upgrade it could run yesterday's machine code. A folder named by the hash of all kernel sources cannot. Ray workers
started from here inherit it, so that they load what the driver has compiled.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "estimator" / "kernels"


def keep_kernels() -> None:
    """Set `NUMBA_CACHE_DIR`, unless the user has; must run before numba is imported."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    digest = sha256(b"".join(source.read_bytes() for source in sorted(KERNELS.glob("*.py")))).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ["NUMBA_CACHE_DIR"] = str(cache / "bestserve" / f"kernels-{digest[:16]}")
