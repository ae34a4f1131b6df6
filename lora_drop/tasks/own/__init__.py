"""The user's own data as a task: files to tables, tables to splits, columns to texts and labels."""

OWN_VERSION = 1
"""The `version` of every task of own data, incremented when its numbers may change."""
