"""Experiments of the test_time room."""
