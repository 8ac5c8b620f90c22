"""The node: composition root, HTTP API and supervision of workers."""
