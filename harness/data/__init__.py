"""Data sets: manifests, readers of their layouts, preprocessing, sampling, augmentation."""
