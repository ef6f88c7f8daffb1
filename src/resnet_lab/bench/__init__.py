"""The benchmark: everything a figure is compared with runs in turns with it, in one command.

Machines are shared and drift, so nothing is compared across time. Every contender is a process of
its own that sets itself up and then waits at a gate (`gate`); the gates open one at a time, round
after round, and figures are compared within a round.
"""
