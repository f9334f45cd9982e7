"""Makers of the files in workflows/ and subgraphs/: what the graphs hold, and how the frontend wants them written."""
