"""Methods that fit a plug-in to a model's input side."""
