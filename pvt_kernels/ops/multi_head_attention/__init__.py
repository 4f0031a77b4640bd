"""Attention with the projections around it."""
