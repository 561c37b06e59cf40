"""Figures: images, bars, curves, intervals."""
