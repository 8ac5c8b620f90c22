"""The shapes of answers, for the OpenAPI document: which fields each has, and of which type.

Decides nothing about answers: resources do. Answers may have more fields than are named here, and a
later version may add some; none that is named goes away. The tests send requests made from the
document and compare the answers with it.
"""

from __future__ import annotations

from typing import Any, Final

type Json = dict[str, Any]

STRING: Final[Json] = {"type": "string"}
INTEGER: Final[Json] = {"type": "integer"}
NUMBER: Final[Json] = {"type": "number"}
BOOLEAN: Final[Json] = {"type": "boolean"}
OBJECT: Final[Json] = {"type": "object"}
ANY: Final[Json] = {}
MAYBE_STRING: Final[Json] = {"type": ["string", "null"]}
MAYBE_INTEGER: Final[Json] = {"type": ["integer", "null"]}
MAYBE_NUMBER: Final[Json] = {"type": ["number", "null"]}
MAYBE_OBJECT: Final[Json] = {"type": ["object", "null"]}
STRINGS: Final[Json] = {"type": "array", "items": STRING}
OBJECTS: Final[Json] = {"type": "array", "items": OBJECT}


def _object(**fields: Json) -> Json:
    return {"type": "object", "required": sorted(fields), "properties": fields}


_CELL = _object(name=STRING)
_SHARD = _object(
    keyspace=STRING,
    name=STRING,
    serving=BOOLEAN,
    denied_tables=STRINGS,
    reads_disabled=OBJECT,
    reads_enabled=OBJECT,
)
_TABLET = _object(
    alias=STRING,
    keyspace=STRING,
    shard=STRING,
    types=STRINGS,
    conninfo=STRING,
    secret=MAYBE_STRING,
    engine=STRING,
)
_SHOWN_SHARD = _object(
    **_SHARD["properties"], key_range=STRING, tablets={"type": "array", "items": _TABLET}
)
_KEYSPACE = _object(name=STRING, sharded=BOOLEAN, shard_count=INTEGER, serving=STRINGS)
_CONDITION: Final[dict[str, Json]] = {
    "state": {
        "type": "string",
        "enum": [
            "creating",
            "copying",
            "running",
            "stopped",
            "error",
            "switching",
            "reads switched",
            "switched",
            "reversing",
            "completing",
            "cancelling",
        ],
    },
    "phase": STRING,
    "max_lag_s": MAYBE_NUMBER,
    "vdiff_age_s": MAYBE_NUMBER,
    "next_step": STRING,
}
_LISTED = _object(
    name=STRING,
    keyspace=STRING,
    type=STRING,
    source=STRING,
    target=STRING,
    tables=STRINGS,
    **_CONDITION,
    unreachable=OBJECT,
    waits=OBJECTS,
    operation=MAYBE_STRING,
    traffic=STRING,
    alarms={"type": "array"},
    version=INTEGER,
    created_at=STRING,
)
_TENANT = _object(
    name=STRING,
    keyspace=STRING,
    shard=STRING,
    tablet=MAYBE_STRING,
    database=MAYBE_STRING,
    schema=MAYBE_STRING,
    versions=OBJECT,
)
_SOURCE = _object(name=STRING, source=STRING)
_MEMBER = _object(
    name=STRING,
    address=STRING,
    status=STRING,
    message=STRING,
    role=MAYBE_STRING,
    is_owner=BOOLEAN,
    version=STRING,
    schema_version=INTEGER,
    api_extensions=STRINGS,
)
_JOIN_TOKEN = _object(
    name=STRING, created_at_ms=INTEGER, expires_at_ms=INTEGER, used_at_ms=MAYBE_INTEGER
)
_TOKEN = _object(
    name=STRING, role=STRING, created_at=STRING, expires_at=MAYBE_STRING, created_by=STRING
)
_AUDITED = _object(
    seq=INTEGER,
    at=STRING,
    caller=STRING,
    role=STRING,
    origin=STRING,
    member=STRING,
    what=STRING,
    outcome=INTEGER,
    hash=STRING,
)
_OPERATION = _object(
    id=STRING,
    name=STRING,
    parameters=OBJECT,
    state=STRING,
    why=STRING,
    error=STRING,
    tasks=INTEGER,
    tasks_done=INTEGER,
    caller=STRING,
    priority=INTEGER,
    created_at=STRING,
    started_at=MAYBE_STRING,
    ended_at=MAYBE_STRING,
    version=INTEGER,
)
_OUTCOME = _object(
    summary=STRING,
    dry_run=BOOLEAN,
    lines=STRINGS,
    start_state=MAYBE_STRING,
    current_state=MAYBE_STRING,
    pause_ms=MAYBE_NUMBER,
    workflow=MAYBE_OBJECT,
    findings=OBJECTS,
    routers={"type": "array"},
)


_SCHEMAS = _object(
    summary=STRING,
    source=STRING,
    target=STRING,
    equal=BOOLEAN,
    missing=STRINGS,
    different={"type": "array", "items": _object(object=STRING, how=STRINGS)},
    only_at_target=STRINGS,
    not_compared=STRINGS,
    changes=STRINGS,
    statements=STRINGS,
    verified=BOOLEAN,
    findings=OBJECTS,
    dry_run=BOOLEAN,
)


def _one(fields: Json) -> Json:
    """The envelope of one object."""
    properties = {"schema_version": {"type": "integer", "const": 1}, **fields["properties"]}
    return {
        "type": "object",
        "required": sorted({"schema_version", *fields["required"]}),
        "properties": {"dry_run": BOOLEAN, **properties},
    }


def _many(item: Json) -> Json:
    """The envelope of a list."""
    return _one(_object(items={"type": "array", "items": item}))


_ANSWERS: Final[dict[str, Json]] = {
    "Answer": _one(_object()),
    "Health": _object(status=STRING),
    "NodeAnswer": _one(
        _object(
            version=STRING,
            api_level=INTEGER,
            started_at=STRING,
            state_dir=STRING,
            stage=STRING,
            why=MAYBE_STRING,
            waits_for=STRINGS,
            member=MAYBE_STRING,
            revision=MAYBE_INTEGER,
        )
    ),
    "ClusterAnswer": _one(
        _object(
            stage=STRING,
            cluster=MAYBE_STRING,
            address=MAYBE_STRING,
            engine=STRING,
            place=STRING,
            schema_version=INTEGER,
            owner=MAYBE_STRING,
        )
    ),
    "NamedAnswer": _one(_object(name=STRING)),
    "DeletedAnswer": _one(_object(deleted={"type": ["boolean", "integer"]})),
    "RouterAnswer": _one(_object(router=STRING)),
    "Routers": _many(_object(router=STRING, revision=INTEGER, state=STRING)),
    "Cells": _many(_CELL),
    "KeyspaceAnswer": _one(
        _object(
            **_KEYSPACE["properties"],
            shards={"type": "array", "items": _SHOWN_SHARD},
            vschema=OBJECT,
        )
    ),
    "Keyspaces": _many(_KEYSPACE),
    "MadeKeyspace": _one(_object(name=STRING, shards=STRINGS)),
    "MadeShards": _many(_SHARD),
    "Shards": _many(_SHOWN_SHARD),
    "ShardAnswer": _one(_SHOWN_SHARD),
    "TabletAnswer": _one(_TABLET),
    "ChangedTablet": _one(_object(**_TABLET["properties"], warnings=STRINGS)),
    "Tablets": _many(_TABLET),
    "VSchemaAnswer": _one(_object(keyspace=STRING, vschema=OBJECT)),
    "AppliedVSchema": _one(_object(keyspace=STRING, vschema=OBJECT, warnings=STRINGS)),
    "RulesAnswer": _one(_object(rules=OBJECTS)),
    "Workflows": _many(_LISTED),
    "WorkflowAnswer": _one(_object(**_LISTED["properties"], workflow=OBJECT, history=OBJECTS)),
    "OutcomeAnswer": _one(_OUTCOME),
    "SchemaAnswer": _one(_SCHEMAS),
    "Operations": _one(
        _object(items={"type": "array", "items": _OPERATION}, next_before=MAYBE_STRING)
    ),
    "OperationAnswer": _one(_object(**_OPERATION["properties"], containers=OBJECTS)),
    "OperationLog": _many(_object(seq=INTEGER, at=STRING, task=STRING, line=STRING)),
    "TenantAnswer": _one(_TENANT),
    "Tenants": _many(_TENANT),
    "FoundTenants": _one(_object(items=OBJECTS, new=INTEGER)),
    "TenantVersions": _one(_object(source=STRING, head=STRING, items=OBJECTS)),
    "EnsuredTenant": _one(_object(tenant=STRING, upgraded=BOOLEAN, version=STRING)),
    "Sources": _many(_SOURCE),
    "SourceAnswer": _one(_SOURCE),
    "OpenedSource": _one(_object(**_SOURCE["properties"], head=STRING)),
    "Members": _many(_MEMBER),
    "JoinTokens": _many(_JOIN_TOKEN),
    "Settings": _many(_object(name=STRING, value=STRING)),
    "SettingAnswer": _one(_object(name=STRING, value=STRING)),
    "Objects": _many(OBJECT),
    "Tokens": _many(_TOKEN),
    "MadeToken": _one(_object(name=STRING, role=STRING)),
    "AuditEntries": _many(_AUDITED),
    "AuditVerdict": _one(
        _object(
            is_intact=BOOLEAN, entries=INTEGER, first_seq=INTEGER, last_seq=INTEGER, head=STRING
        )
    ),
}

#: By the operation's name, the shape of its answer.
SHAPES: Final[dict[str, str]] = {
    "livez": "Health",
    "show_node": "NodeAnswer",
    "list_spans": "Objects",
    "examine": "Answer",
    "list_routers": "Routers",
    "report_router": "RouterAnswer",
    "delete_router": "RouterAnswer",
    "show_cluster": "ClusterAnswer",
    "enable_cluster": "Answer",
    "join_cluster": "Answer",
    "list_members": "Members",
    "remove_member": "Answer",
    "set_role": "Answer",
    "create_join_token": "NamedAnswer",
    "list_join_tokens": "JoinTokens",
    "revoke_join_token": "NamedAnswer",
    "create_token": "MadeToken",
    "list_tokens": "Tokens",
    "revoke_token": "NamedAnswer",
    "list_audit": "AuditEntries",
    "verify_audit": "AuditVerdict",
    "list_settings": "Settings",
    "set_setting": "SettingAnswer",
    "create_cell": "NamedAnswer",
    "list_cells": "Cells",
    "delete_cell": "DeletedAnswer",
    "create_keyspace": "MadeKeyspace",
    "list_keyspaces": "Keyspaces",
    "show_keyspace": "KeyspaceAnswer",
    "delete_keyspace": "DeletedAnswer",
    "create_shards": "MadeShards",
    "list_shards": "Shards",
    "show_shard": "ShardAnswer",
    "delete_shard": "DeletedAnswer",
    "create_tablet": "TabletAnswer",
    "list_tablets": "Tablets",
    "show_tablet": "TabletAnswer",
    "update_tablet": "ChangedTablet",
    "delete_tablet": "DeletedAnswer",
    "show_vschema": "VSchemaAnswer",
    "apply_vschema": "AppliedVSchema",
    "show_routing_rules": "RulesAnswer",
    "apply_routing_rules": "RulesAnswer",
    "map_values": "Objects",
    "create_movetables": "OutcomeAnswer",
    "create_reshard": "OutcomeAnswer",
    "list_workflows": "Workflows",
    "show_workflow": "WorkflowAnswer",
    "show_status": "Answer",
    "start_workflow": "OutcomeAnswer",
    "stop_workflow": "OutcomeAnswer",
    "switch_traffic": "OutcomeAnswer",
    "reverse_traffic": "OutcomeAnswer",
    "complete_workflow": "OutcomeAnswer",
    "cancel_workflow": "OutcomeAnswer",
    "compare_schemas": "SchemaAnswer",
    "copy_schema": "SchemaAnswer",
    "create_vdiff": "Answer",
    "list_vdiffs": "Objects",
    "show_vdiff": "Answer",
    "delete_vdiff": "DeletedAnswer",
    "stop_vdiff": "Answer",
    "resume_vdiff": "Answer",
    "enqueue_operation": "Answer",
    "list_operations": "Operations",
    "show_operation": "OperationAnswer",
    "pause_operation": "OperationAnswer",
    "resume_operation": "OperationAnswer",
    "cancel_operation": "OperationAnswer",
    "undo_operation": "OperationAnswer",
    "retry_operation": "OperationAnswer",
    "skip_operation_task": "OperationAnswer",
    "approve_operation": "OperationAnswer",
    "list_tenants": "Tenants",
    "add_tenant": "TenantAnswer",
    "discover_tenants": "FoundTenants",
    "tenants_status": "TenantVersions",
    "show_tenant": "TenantAnswer",
    "remove_tenant": "TenantAnswer",
    "rename_tenant": "TenantAnswer",
    "baseline_tenants": "Objects",
    "stamp_tenants": "Objects",
    "repair_tenants": "Objects",
    "verify_tenants": "Objects",
    "ensure_tenant": "EnsuredTenant",
    "list_sources": "Sources",
    "add_source": "OpenedSource",
    "show_source": "OpenedSource",
    "remove_source": "SourceAnswer",
    "upgrade_tenants": "Answer",
    "list_runs": "Objects",
    "show_run": "Answer",
    "list_run_tenants": "Objects",
    "pause_run": "Answer",
    "resume_run": "Answer",
    "cancel_run": "Answer",
    "retry_run": "Answer",
    "skip_tenants": "Answer",
    "show_upgrade": "Answer",
    "finalise_upgrade": "Answer",
    "retry_upgrade": "Answer",
    "skip_upgrade": "Answer",
    "supersede_upgrade": "Answer",
}


def _text(media_type: str, description: str) -> Json:
    return {
        "200": {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}
    }


_HEALTH: Final[Json] = {
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}
}

#: Operations whose answers are described as a whole.
OTHERS: Final[dict[str, Json]] = {
    "readyz": {
        "200": {"description": "The node can take work.", **_HEALTH},
        "503": {"description": "It cannot; `why` says why.", **_HEALTH},
    },
    "show_metrics": {
        **_text("text/plain", "Metrics in Prometheus' text form."),
        "503": {"$ref": "#/components/responses/Failure503"},
    },
    "backup_cluster": _text("application/x-ndjson", "The backup, one JSON value a line."),
    "show_routes": {
        "200": {
            "description": "The routes; with `watch`, events `routes` with the same as data.",
            "content": {
                "application/json": {"schema": OBJECT},
                "text/event-stream": {"schema": _object(event=STRING, id=STRING, data=STRING)},
            },
        }
    },
    "show_operation_log": {
        "200": {
            "description": "Lines of the log; with `watch`, events `line` and `operation`.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/OperationLog"}},
                "text/event-stream": {"schema": _object(event=STRING, id=STRING, data=STRING)},
            },
        }
    },
}


def schemas() -> Json:
    """The shapes by name."""
    return dict(_ANSWERS)
