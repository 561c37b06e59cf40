"""Maps of features and prompts, and what they hide."""
