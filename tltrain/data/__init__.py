"""Examples: from a source to splits with an identity, and from splits to batches.

What an encoded example is, is known in `kinds` alone; the only TensorFlow of training is here. Nothing here knows a
model: a backbone says which kind it takes.
"""
