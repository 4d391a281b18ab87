"""Classification data with one or several labels per image: data sets, layouts, checks, splits, augmentation."""
