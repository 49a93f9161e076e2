"""What stage 1 leaves and stage 2 reads."""
