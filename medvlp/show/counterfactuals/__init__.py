"""Are explanations faithful? Measured on phantoms, each beside its twin with one attribute turned round."""
