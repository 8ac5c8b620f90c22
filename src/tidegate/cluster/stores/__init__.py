"""The engines of the cluster database: one module each, the only place of engine-specific SQL."""
