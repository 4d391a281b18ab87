"""Pixel level: label maps, from data folders to batches."""
