"""CLIP and its frozen features."""
