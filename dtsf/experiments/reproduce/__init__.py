"""A published experiment from the videos to one table. Stands above :mod:`dtsf.api`, whose two stages it runs."""
