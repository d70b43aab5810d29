"""Experiments of the continual room."""
