"""Who says that there is a part: HTTP, MQTT, a coil of a PLC. ``open_trigger`` is the door."""
