"""Methods on frozen image features: probes, caches and small networks."""
