"""The deployment guide: which engine with which settings for which use, what it costs, what is open, what is next.

It adds no statistics: every number is one that `cmp stats` computes of the same runs, with its interval and its run.
"""
