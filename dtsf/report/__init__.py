"""Reports of runs and caches: one self-contained HTML file each."""
