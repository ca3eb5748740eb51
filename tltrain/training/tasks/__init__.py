"""Tasks: what a label is, and all that follows from it: loss, activation, scores, what ranks an epoch.

`task.py` is what every task is; steps, evaluation, reports and exports know no more of a label than that.
"""
