"""What the images are: cards, data sets and phantoms."""
