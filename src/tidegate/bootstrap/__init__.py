"""First start of a cluster, and the upgrades of its own tables and of users' tenants."""
