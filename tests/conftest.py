"""Fixtures every test may use; real servers are in ``fix_servers``."""

pytest_plugins = [
    "fix_servers",
    "fix_databases",
    "fix_copy",
    "fix_fleet",
    "fix_vdiff",
    "fix_span",
    "fix_proxy",
    "fix_dqlite",
    "fix_cluster",
    "fix_tenants",
    "fix_tls",
    "fix_soak",
]
