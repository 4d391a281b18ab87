"""Pictures that tasks and reports share: sheets, boxes and masks, matrices, curves."""
