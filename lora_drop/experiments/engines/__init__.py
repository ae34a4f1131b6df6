"""Engines that perform the runs of a grid: in this process, in several on this machine, or on a Ray cluster."""
