"""A benchmark of loss functions for medical and semantic image segmentation."""

__version__ = "0.1.0"
