"""Experiments of the merging room."""
