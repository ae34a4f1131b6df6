"""Criteria, which give every LoRA a number ≥ 0 from which its importance follows. One file each.

`base` has the interface; `output` is the paper's criterion. No criterion imports torch before it scores, so that its
name and version are available at once.
"""
