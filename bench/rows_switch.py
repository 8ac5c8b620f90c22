"""Row: how long writes pause in a switch, under load; there is no peer, only a bound."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from measure import Row, Sample
from product import TARGET, WORKFLOW, site

if TYPE_CHECKING:
    from collections.abc import Iterator

SWITCHES = 20
TABLE_ROWS = 200_000
MEDIAN_MS = 250.0
LOAD = """\\set id random(1, {rows})
UPDATE public.rows SET b = b + 1 WHERE id = :id;
"""


def pauses() -> Iterator[Sample]:
    """Twenty switches there and back, each with pgbench writing on the side that serves."""
    with site(TABLE_ROWS) as world:
        world.move()
        for number in range(SWITCHES):
            serving = world.target if number % 2 else world.source
            script = serving.folder / "load.sql"
            script.write_text(LOAD.format(rows=TABLE_ROWS))
            command = [serving.programs.path("pgbench"), "-n", "-c", "4", "-T", "60"]
            environment = serving.environment() | {"PGUSER": "app", "PGPASSWORD": "app"}
            with subprocess.Popen(
                [*command, "-f", str(script)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as load:
                verb = (
                    world.client.workflow.reverse_traffic
                    if number % 2
                    else world.client.workflow.switch_traffic
                )
                world.wait_in_step()
                verb(
                    WORKFLOW,
                    TARGET,
                    tablet_types=["primary", "replica", "rdonly"],
                    allow_unverified=True,
                )
                load.terminate()
            yield Sample(world.client.workflow.status(WORKFLOW, TARGET)["last_pause_ms"])


ROWS = [
    Row(
        name="switch-pause",
        what="pause of writes in a switch under load, 20 switches",
        unit="ms",
        peer="",
        target=1.0,
        target_text="<= 250 ms at the median, <= 1000 ms at the worst",
        produce=pauses,
        higher_is_better=False,
        bound=MEDIAN_MS,
        worst=0.25,
    ),
]
