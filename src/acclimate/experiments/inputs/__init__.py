"""Experiments of the inputs room."""
