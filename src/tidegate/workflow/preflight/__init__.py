"""Preflight: finds every reason not to start a workflow, before anything is changed."""
