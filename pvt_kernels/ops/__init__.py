"""The ops, one folder each: reference.py defines it, op.py is it, the others compute it."""
