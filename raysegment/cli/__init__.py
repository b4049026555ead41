"""The command line: parse, call one library function, print its result.

Start with `common.py`: what every command shares. Then one file per group of commands. Nothing here
imports torch, ray, zarr or tifffile before a command runs: `raysegment --help` must answer at once.
"""
