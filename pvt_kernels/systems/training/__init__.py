"""Trains and evaluates a `System` by its `Recipe`, on one or many processes."""
