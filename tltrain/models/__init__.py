"""Networks: layers, one file a family, the classifier around a backbone, and which of its stages learn.

A backbone is an ordered list of named stages; layers are named as in Keras. Nothing here knows where variables come
from, what a batch is, or how anything is trained.
"""
