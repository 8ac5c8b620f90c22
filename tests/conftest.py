"""Fixtures every test may use; real servers are in ``fix_servers``."""

import os
import tempfile

from hypothesis import HealthCheck, settings

from tidegate.engines.postgres.local import local_folder
from tidegate.secret import FOLDERS_VARIABLE

# Passwords of throw-away servers lie here; nodes that tests start inherit it.
os.environ[FOLDERS_VARIABLE] = f"{tempfile.gettempdir()}:{local_folder()}"

# How long one example takes depends on what runs beside it; speed is measured by the bench alone.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

pytest_plugins = [
    "fix_forked",
    "fix_processes",
    "fix_alone",
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
