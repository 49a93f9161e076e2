"""Video files and image folders to sampled frames."""
