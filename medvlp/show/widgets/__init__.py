"""The widgets for notebooks. Each is thin over functions and methods that a script can call as well.

Every one shows itself at the end of a cell, can be used with the keyboard alone, and has `static()`: a figure
for those who read the notebook without running it.
"""
