"""Learned prompts into unmodified towers: slots among the tokens, hooks, and walks through the blocks."""
