"""`python -m yarn_ops.cli`."""

from yarn_ops.cli import main

main()
