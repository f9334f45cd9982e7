"""Suites, baselines and tables (may start processes and read the network of this machine; never part of a run)."""
