"""Drawn images whose visual attributes are known, and the captions that describe them."""
