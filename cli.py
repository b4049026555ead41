"""The command line from a checkout: ``python cli.py infer …``; what a submitted Ray Job starts."""

from raysegment.cli.app import main

if __name__ == "__main__":
    main()
