"""Methods that combine checkpoints of one architecture."""
