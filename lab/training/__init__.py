"""Recipes that make the bundled models."""
