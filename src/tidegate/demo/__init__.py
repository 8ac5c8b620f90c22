"""The demo: real servers, a real load, the whole way from a monolith to two shards."""
