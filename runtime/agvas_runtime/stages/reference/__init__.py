"""The three stages by torch, from the checkpoint that a bundle was exported from: what the other backends are compared with.

The only part of the runtime that reaches into ``agvas_core.model``, by an exception that import-linter knows; nothing imports it before
the backend ``torch`` is asked for.
"""
