"""Ways to turn a frozen CLIP into a classifier, one a file."""
