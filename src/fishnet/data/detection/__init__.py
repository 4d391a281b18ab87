"""Detection data with boxes, masks and keypoints: data sets, checks, conversion, splits and augmentation."""
