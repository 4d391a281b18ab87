"""Images with boxes, masks and keypoints: data sets, checks, conversion and augmentation."""
