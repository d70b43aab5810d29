"""Experiments of the objectives room."""
