"""What the Tab key may add to a command line.

A tenth of a second: no command is imported and nothing is composed. Keys and choices are read from
conf/, the options of a command from its source.
"""
