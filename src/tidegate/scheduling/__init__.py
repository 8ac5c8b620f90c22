"""Table spans over captures: who works on what, how spans move, how far the whole is.

One elected owner decides, every capture runs an agent; nothing about placement is stored. A new
owner learns from the captures' reports what runs where.

* ``model``, ``messages``: values.
* ``transitions``, ``replication``: one span at the owner, by a table.
* ``captures``: the captures that the owner knows.
* ``executing``, ``agent``: a capture's side.

Everything here is pure: time is counted in calls of ``tick``, and what chance is needed for is an
argument. The node does not use this package yet.
"""
