"""Metrics, computed on this machine: no metric script is fetched."""
