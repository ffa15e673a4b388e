"""Skin surfaces of heads, exact distances between them, and pictures of both."""

from __future__ import annotations

from RefaceRiskLib.surface.extract import (
    Surface,
    extract_skin,
    head_field,
    isosurface,
    signed_distance_grid,
    signed_distance_map,
    skin_level,
)

__all__ = ["Surface", "extract_skin", "head_field", "isosurface", "signed_distance_grid", "signed_distance_map",
           "skin_level"]  # fmt: skip
