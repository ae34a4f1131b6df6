"""Training, for the warm-up and the final model alike."""
