"""Criteria: a number ≥ 0 for every LoRA, from which the importances follow. One file each; `base` has the interface.

`output` is the paper's. None of these files imports torch before it scores, so that name and version of a criterion
are known at once.
"""
