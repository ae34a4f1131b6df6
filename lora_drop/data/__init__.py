"""From the rows of a task to batches of tokens."""
