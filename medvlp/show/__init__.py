"""Figures, galleries and widgets."""
