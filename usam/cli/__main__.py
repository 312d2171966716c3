"""`python -m usam.cli` is `usam`."""

from usam.cli import main

main()
