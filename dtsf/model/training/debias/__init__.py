"""Peers of DTSFNet that remove static bias: HSIC and StillMix."""
