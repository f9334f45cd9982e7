"""Observation-driven prompt refinement."""
