"""Visual symptoms of diseases, asked of an LLM, read, checked and kept."""
