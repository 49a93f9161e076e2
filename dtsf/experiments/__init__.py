"""Experiments of many trainings: tables of variants, and published experiments."""
