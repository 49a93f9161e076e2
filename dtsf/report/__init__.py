"""What a run or a cache looks like to a person: one HTML file each, which needs nothing beside itself."""
