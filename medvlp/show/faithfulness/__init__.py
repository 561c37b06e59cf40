"""Whether explanations are true: one attribute turned round, and controls."""
