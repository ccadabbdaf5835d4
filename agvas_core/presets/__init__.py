"""Presets: one TOML file for each model, with the tables ``model`` and ``train``."""
