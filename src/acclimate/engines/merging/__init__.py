"""Merging: checkpoints and adapters as streams of tensors, the plan of a merge, vocabularies, and what quantised parents keep."""
