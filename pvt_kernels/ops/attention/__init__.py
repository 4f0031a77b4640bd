"""Softmax attention of N queries over M keys."""
