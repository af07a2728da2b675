"""`python -m gateway.cli`: the `cortex` command."""

from gateway.cli.main import main

main()
