"""Small trainable parts inside a frozen model."""
