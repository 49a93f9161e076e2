"""Stage 1: from videos to a cache of frame embeddings."""
