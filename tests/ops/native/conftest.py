"""Fewer examples for the runs in which each takes many times longer."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sanitized", max_examples=15, deadline=None, database=None)
