"""Tests of the promises in docs/reliability.md: `make torture`."""
