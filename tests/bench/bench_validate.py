"""Time of all answers to a measurements file: `python -m tests.bench.bench_validate MEASUREMENTS.csv`.

Reach: 1,779 runs in under 20 s on two cores, workers started and kernels timed within it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from search.validate import validate

REACH_S = 20.0


def main(measurements: Path) -> int:
    """Validates twice (the first run may compile) and prints the second time; 1 where it misses the reach."""
    validate(measurements)
    started = time.perf_counter()
    found = validate(measurements)
    elapsed_s = time.perf_counter() - started
    print(f"{found.num_runs} runs in {elapsed_s:.1f} s, {1e3 * elapsed_s / found.num_runs:.1f} ms each")
    return int(elapsed_s > REACH_S)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
