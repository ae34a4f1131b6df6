"""Metrics, computed locally: no metric script is downloaded."""
