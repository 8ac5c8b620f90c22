"""VDiff: proves that the targets of a workflow hold exactly their sources' rows, under load."""
