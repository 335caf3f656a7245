"""Criteria, methods and presets of your own, one file each: docs/plugins.md. Every bundle holds what lies here."""
