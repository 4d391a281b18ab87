"""Image level: one label, or several, for a whole image."""
