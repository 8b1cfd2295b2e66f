"""One self-contained HTML page per run, with every figure as PNG and CSV beside it."""
