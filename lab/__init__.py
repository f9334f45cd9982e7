"""What maintainers run and no user needs: trainings, experiments, makers of graphs, release chores, benchmarks."""
