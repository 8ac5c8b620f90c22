"""The one durable runner of cluster operations: what lasts longer than a request is a task here."""
