"""Records to HTML: the page of a run, of several runs, of a learning-rate test, and their charts.

A page is made of what lies in a workdir, and of thumbnails. Nothing here knows how a run came to be, or computes a
number that a run does not hold.
"""
