"""Cluster operations on workflows: resharding and vertical splits as graphs of tasks."""
