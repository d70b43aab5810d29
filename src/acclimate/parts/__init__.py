"""Maths shared by two or more methods: pure functions."""
