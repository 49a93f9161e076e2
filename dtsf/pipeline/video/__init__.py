"""From a video file to the frames that were asked for."""
