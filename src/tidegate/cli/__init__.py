"""The command line: one file per noun; speaks to the HTTP API only."""
