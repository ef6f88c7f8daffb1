"""How fast this project is on a machine: `make bench`, or `python -m benchmarks` from the root.

It is a tool of the repository and no part of the package. Machines are shared and drift, so
nothing is compared across time: contenders take turns, and ratios are taken within a round.
"""
