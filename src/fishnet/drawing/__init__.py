"""Figures and pictures that tasks and reports share: contact sheets, boxes and masks, matrices, curves."""
