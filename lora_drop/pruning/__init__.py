"""The paper's method: sample, score, select, share.

Read `sampling`, `places`, `importance`, `selection` and `sharing`, in this order.
"""
