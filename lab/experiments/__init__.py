"""Measurements of this pack that its docs report."""
