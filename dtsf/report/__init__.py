"""HTML pages for a run, a comparison of runs, or a cache, and the film of a prediction."""
