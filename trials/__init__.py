"""The trial plan, the cost model and the run report (plain Python)."""
