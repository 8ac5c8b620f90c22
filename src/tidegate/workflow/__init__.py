"""What a workflow is, its plans, its preflight and its verification."""
