"""Engine-neutral loops: copy, stream, apply, compare; the span worker process."""
