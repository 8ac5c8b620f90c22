"""Table spans over captures: who works on what, how spans move, how far the whole is.

One elected owner decides, every capture runs an agent; nothing about placement is stored. A new
owner learns from the captures' reports what runs where.

* ``model``, ``messages``, ``transport``: values, and how they travel.
* ``transitions``, ``replication``: one span at the owner, by a table.
* ``placement``, ``orders``, ``schedulers``: all spans, what is sent, what is done next.
* ``attempts``: where a span could not begin, and when it is tried there again.
* ``reconciling``, ``splitting``: which spans shall exist.
* ``watermark``, ``barriers``: how far the whole is, and may go.
* ``captures``, ``coordinator``, ``settings``, ``asking``: the owner's side.
* ``executing``, ``agent``, ``lease``: a capture's side.

**Driving an owner.** Whoever wins the owner's lease makes one ``Scheduler`` for each workflow, with
the revision of the lease and a transport, and calls ``tick`` at intervals with the durable
checkpoint, the wanted tables, the captures that hold a lease, the barrier and a monotonic time. It
stores the watermark if ``can_proceed``; ``behind`` says why it stands still when spans or barriers
are behind it, ``faults`` and ``failures_of`` what is wrong with a table or a span, ``move.refused``
what became of a move that could not be. It ends the lives of ``silent_captures`` in the cluster
database, and gives its lease away when ``is_cut_off``. With the lease it drops the scheduler.

**Driving a capture.** Each life has an epoch of its own. It makes one ``Agent`` for each workflow,
with an executor, calls ``tick`` at intervals, and lets nothing be written while its ``WriteLease``
is not open; when that has lapsed it stops all workers and begins a new life. A writer works under
the epoch that ``add_table_span`` was given, which the target checks in every transaction; it starts
at the position that the target has, never at one that was reported.

Everything here is pure: time is counted in calls of ``tick`` or is an argument, and nothing is
drawn by chance. The node does not use this package yet.
"""
