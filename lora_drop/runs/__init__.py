"""The run directory, and the stages that fill it."""
