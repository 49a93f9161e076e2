"""Frame encoders: frames to embeddings."""
