"""`python -m pvt_kernels check`: whether the kernels are right on the machine at hand.

`error_budget` says how far a kernel may err, for the tests too; `cases` are the calls that are
checked, `errors`, `behaviours`, `memory` and `timings` what is looked at; `jobs` makes one list of
all, which `run` works off in a process of its own; `report` makes the table, `cli` the command.
"""
