"""`python -m enginecmp` is `cmp`."""

from enginecmp.cli import main

main()
