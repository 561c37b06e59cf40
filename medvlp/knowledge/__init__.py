"""What language models know of the classes: representations per class."""
