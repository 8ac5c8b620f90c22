"""The worker process of migrations that are programs; it needs nothing but the user's Python."""
