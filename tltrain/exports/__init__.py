"""A finished run as the file of another library: Keras, SavedModel, StableHLO, ONNX, TFLite.

A file is written where its probabilities are those of the run. Nothing here changes a run.
"""
