"""The command line from a checkout: ``python cli.py infer …``; the same as ``python -m raysegment infer …``."""

from raysegment.cli.app import main

if __name__ == "__main__":
    main()
