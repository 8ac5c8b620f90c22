"""dqlite: the cluster database replicated by Raft over the nodes themselves."""
