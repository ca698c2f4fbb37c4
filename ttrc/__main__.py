"""`python -m ttrc`: the command line."""

from ttrc.cli import main

main()
