"""Examples: from a source to splits with an identity, and from splits to batches.

Decoding, resizing and augmentation are here, and the only TensorFlow of training. Nothing here knows a model: a
backbone says what size it wants, and gets uint8 pixels.
"""
