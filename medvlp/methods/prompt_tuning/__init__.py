"""The family of ViP and CILMP: learned prompts in the text tower, the image tower, or both."""
