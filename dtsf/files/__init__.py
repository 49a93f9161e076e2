"""Safe reading and writing of files, for all parts of dtsf."""
