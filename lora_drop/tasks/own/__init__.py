"""Anybody's own data as a task: files to tables, tables to splits, columns to texts and labels."""

OWN_VERSION = 1
"""Raised when numbers may change: the `version` of every task of own data."""
