"""Files that parameters of vindexes name: read once, only inside one folder, never echoed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.schema import Schema
from tidegate.errors import InvalidArgumentError, NotFoundError
from tidegate.topology import store as store_module
from tidegate.topology import vindexes
from tidegate.topology.service import TopologyService
from tidegate.topology.store import TopologyStore
from tidegate.topology.vindexes.mapping import map_values
from tidegate.topology.vindexes.param_files import FILE_BYTES_MAX, inlined

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret-of-somebody"
REGIONS = '{"eu": 1, "us": 2}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state" / "vindexes"
    made.mkdir(parents=True)
    (tmp_path / "state" / "secret.json").write_text(f'{{"{SECRET}": 1}}')
    (made / "regions.json").write_text(REGIONS)
    return made


def region(name: str, folder: Path | None) -> str:
    params = {"region_bytes": "1", "region_map": name}
    return inlined("region_json", "by_region", params, folder)["region_map"]


def vschema(region_map: str) -> dict[str, object]:
    params = {"region_bytes": "1", "region_map": region_map}
    return {
        "sharded": True,
        "vindexes": {"by_region": {"type": "region_json", "params": params}},
        "tables": {"t": {"column_vindexes": [{"columns": ["id", "c"], "name": "by_region"}]}},
    }


def test_a_file_of_the_folder_is_read_by_its_name_and_by_its_whole_path(folder: Path) -> None:
    assert region("regions.json", folder) == REGIONS
    assert region(str(folder / "regions.json"), folder) == REGIONS
    (folder / "..data").mkdir()
    (folder / "..data" / "more.json").write_text(REGIONS)
    (folder / "more.json").symlink_to("..data/more.json")  # as mounted configuration does it
    assert region("more.json", folder) == REGIONS


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    "way", ["above", "whole path", "link", "link to a folder", "folder itself", "pipe", "nul"]
)
def test_nothing_outside_the_folder_is_read_and_one_answer_is_given(
    folder: Path, way: str, *, missing: bool
) -> None:
    outside = folder.parent / ("gone.json" if missing else "secret.json")
    names = {
        "above": f"../{outside.name}",
        "whole path": str(outside),
        "link": "link.json",
        "link to a folder": f"linked/{outside.name}",
        "folder itself": ".",
        "pipe": "pipe",
        "nul": "a\0b",
    }
    (folder / "link.json").symlink_to(outside)
    (folder / "linked").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe")
    with pytest.raises(NotFoundError, match="does not name a readable regular file") as refused:
        region(names[way], folder)
    assert SECRET not in str(vars(refused.value))
    assert outside.name not in refused.value.message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (f"root:{SECRET}:19000".encode(), "does not hold a JSON object"),
        (b'{"a": 1, %s' % SECRET.encode(), "invalid JSON"),
        (b"\xff\xfe" + SECRET.encode(), "not UTF-8"),
        (b'{"a": 1}'.ljust(FILE_BYTES_MAX + 1), "larger than 1048576 bytes"),
        (b'{"%s": 1}' % SECRET.encode(), "entry 1 is not a whole number"),
        (b'{"1": "%s"}' % SECRET.encode(), "entry 1 is not a whole number"),
        (b'{"1": %s}' % (b"9" * 5000), "cannot be read"),
        (b'{"%s": 1}' % (b"9" * 5000), "entry 1 is not a whole number"),
        (b'{"1":' * 100_000, "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_without_its_content(
    folder: Path, content: bytes, what: str
) -> None:
    (folder / "broken.json").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=what) as refused:
        map_values("numeric_static_map", {"json_path": "broken.json"}, [1], files=folder)
    assert SECRET not in str(vars(refused.value))


@pytest.mark.parametrize("type_name", ["region_json", "numeric_static_map"])
def test_a_vindex_by_itself_opens_no_file(folder: Path, type_name: str) -> None:
    param = {"region_json": "region_map", "numeric_static_map": "json_path"}[type_name]
    params = {param: str(folder / "regions.json"), "region_bytes": "1"}
    with pytest.raises(InvalidArgumentError, match="no file is read here"):
        vindexes.create(type_name, type_name, params)


def test_an_applied_vschema_keeps_the_content_of_its_files(folder: Path) -> None:
    with ClusterDatabase.open(f"sqlite:///{folder}/cluster.db") as database:
        Schema((*updates.UPDATES, *store_module.UPDATES)).ensure(database)
        service = TopologyService(TopologyStore(database), files=folder)
        service.add_keyspace("customer", shards=["-80", "80-"])
        service.apply_vschema("customer", vschema("regions.json"))
        (folder / "regions.json").unlink()  # another machine does not have it either
        kept = service.snapshot().vschema("customer").vindexes["by_region"]
        assert kept.params["region_map"] == REGIONS
        with pytest.raises(NotFoundError):
            service.apply_vschema("customer", vschema("/etc/passwd"), dry_run=True)
        without = TopologyService(TopologyStore(database))
        with pytest.raises(InvalidArgumentError, match="no file is read here"):
            without.apply_vschema("customer", vschema("/etc/passwd"))
