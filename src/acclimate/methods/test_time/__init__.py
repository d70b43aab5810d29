"""Methods that adapt a model while it predicts on a stream."""
