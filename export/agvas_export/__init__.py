"""Checkpoint -> bundle: graphs, manifest, hashes."""
