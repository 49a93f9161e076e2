"""Multi-view action recognition from temporal thumbnails: DTSFNet in two stages."""
