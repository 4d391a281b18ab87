"""Several levels of one image in one pass: image, regions and pixels."""
