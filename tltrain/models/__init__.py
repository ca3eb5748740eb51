"""Backbones, and the classifier that stands on one."""
