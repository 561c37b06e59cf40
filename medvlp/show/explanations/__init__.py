"""What an image's scores and patches say about a decision, and whether that is true."""
