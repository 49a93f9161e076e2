"""From frames to embeddings."""
