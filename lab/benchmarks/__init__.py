"""Scripts that measure time, each as ratios within one run."""
