"""Region level: boxes, masks and keypoints of the objects in an image."""
