"""Experiments of the active_learning room."""
