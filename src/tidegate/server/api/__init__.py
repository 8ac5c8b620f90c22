"""The resources under ``/v1``, one module a family; each turns a request into one service call."""
