"""The images that a method gets wrong, and why."""
