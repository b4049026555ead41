"""``python -m raysegment``: the command line."""

from raysegment.cli.app import main

if __name__ == "__main__":
    main()
