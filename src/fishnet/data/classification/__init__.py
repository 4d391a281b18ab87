"""Images with one label, or several: data sets, layouts, checks, split and augmentation."""
