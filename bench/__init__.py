"""Measurements; each says what it compares with, and both sides are measured in one run."""
