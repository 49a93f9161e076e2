"""Tables of variants times seeds."""
