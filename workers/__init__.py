"""Ray around the pipeline, nothing else."""
