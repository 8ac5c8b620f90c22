"""Tenants as users have them, schemas and databases by the thousand, and their upgrades."""
