"""Anybody's own data as a task: files to tables, tables to splits, columns to texts and labels."""
