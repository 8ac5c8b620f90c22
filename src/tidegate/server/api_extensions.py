"""What this program's API can do beyond its first form, for other members to know.

Only ever appended to: members compare the list in its order. The command line and programs may look
for a name in ``tidegate cluster list``.
"""

from __future__ import annotations

from typing import Final

API_EXTENSIONS: Final = ("cluster_members", "internal:forwarding")
