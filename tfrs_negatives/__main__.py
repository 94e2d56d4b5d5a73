"""`python -m tfrs_negatives` is the command line."""

from tfrs_negatives.cli.main import main

main()
