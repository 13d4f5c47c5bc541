"""`python -m pipeline.cli` is `headwater`."""

from pipeline.cli import main

main()
