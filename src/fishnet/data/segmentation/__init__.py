"""Data for semantic segmentation: images with label maps, from data folders to batches."""
