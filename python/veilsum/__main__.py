"""`python -m veilsum`: the command line."""

from veilsum.cli.main import run

if __name__ == "__main__":
    run()
