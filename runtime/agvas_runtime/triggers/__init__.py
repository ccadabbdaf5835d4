"""Triggers: HTTP, MQTT, a coil of a PLC. ``open_trigger`` opens one."""
