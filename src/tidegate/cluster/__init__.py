"""The cluster database: engine, ordered update ledger and leases."""
