"""`python -m tests.export_options WHEEL…`."""

from tests.export_options import main

main()
