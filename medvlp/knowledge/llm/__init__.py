"""Large language models: found, read for hidden states, and served on this machine."""
