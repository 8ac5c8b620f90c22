"""The shipped test kit: throw-away servers, a clock, a fault proxy, conformance suites."""
