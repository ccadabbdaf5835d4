"""The process that runs stations: start, checks, metrics, status, replay."""
