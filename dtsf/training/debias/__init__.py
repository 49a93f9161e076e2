"""Peers of DTSFNet that remove static bias: HSIC, StillMix, ALBAR and SOAR."""
