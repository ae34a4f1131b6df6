"""Turn the rows of a task into batches of tokens."""
