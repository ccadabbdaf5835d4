"""From a sink's address to a sink.

jsonl:PATH                               lines of a file
mqtt://[USER@]HOST[:1883]/TOPIC          QoS 1; mqtts:// with TLS; ?retain=1
opcua://[USER@]HOST[:4840]               an OPC UA server in this process; ?certificate=FILE&key=FILE, &trusted=FOLDER of client certificates
modbus://HOST[:502]/REGISTER             holding registers of a PLC; ?unit=1
http://..., https://...                  a webhook

Passwords and keys come as ``Secrets``, never in an address.
"""

import difflib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from agvas_core.contract.errors import UsageError
from agvas_runtime.sinks.message import VerdictSink

__all__ = ["SCHEMES", "Secrets", "open_sink"]

SCHEMES = ("jsonl", "mqtt", "mqtts", "opcua", "modbus", "http", "https")


class Secrets(NamedTuple):
    """What must not stand in a command line."""

    mqtt_password: str | None = None
    webhook_secret: bytes | None = None
    api_key: str | None = None
    """Of triggers that listen beyond loopback."""
    opcua_password: str | None = None


def open_sink(address: str, secrets: Secrets = Secrets()) -> VerdictSink:  # noqa: B008  # immutable
    """A sink, not yet connected.

    Raises:
        UsageError: an invalid address.
        ModuleNotFoundError: the sink's package is not installed; the command names its extra.
    """
    scheme, _, rest = address.partition(":")
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"the sink {scheme!r} is unknown: {meant}there are jsonl:PATH, mqtt://, opcua://, modbus://, http:// and https://"
        )
    if scheme == "jsonl":
        if not rest:
            raise UsageError("the sink jsonl: has no path: write jsonl:verdicts.jsonl")
        from agvas_runtime.sinks.json_lines import JsonLinesSink

        return JsonLinesSink(Path(rest))
    try:
        parts = urlsplit(address)
        host, port, query = parts.hostname, parts.port, parse_qs(parts.query)
    except ValueError:
        raise UsageError(f"the sink {scheme}: is no address: check host and port") from None
    if not host:
        raise UsageError(f"the sink {scheme}: has no host: write {scheme}://HOST...")
    if parts.password is not None:
        remedy = (
            "give it in AGVAS_MQTT_PASSWORD"
            if scheme.startswith("mqtt")
            else "give it in AGVAS_OPCUA_PASSWORD"
            if scheme == "opcua"
            else "leave it out; AGVAS_WEBHOOK_SECRET signs messages"
        )
        raise UsageError(f"the sink {scheme}://{host} has a password in its address, where others read it: {remedy}")
    if scheme in ("http", "https"):
        from agvas_runtime.sinks.webhook import WebhookSink

        return WebhookSink(address, secret=secrets.webhook_secret)
    if scheme == "opcua":
        from agvas_runtime.sinks.opcua import OpcUaSecurity, OpcUaSink

        if unknown := set(query) - {"certificate", "key", "trusted"}:
            raise UsageError(f"the sink opcua://{host} has the unknown {min(unknown)!r}: there are certificate, key and trusted")
        files = {name: Path(values[0]) for name, values in query.items()}
        named = None if parts.username is None else unquote(parts.username)
        if not files and named is None:
            return OpcUaSink(host, port or 4840)
        if not {"certificate", "key"} <= set(files):
            raise UsageError(
                f"the sink opcua://{host} needs ?certificate=FILE&key=FILE: without them names and passwords go in the clear"
            )
        if named is not None and secrets.opcua_password is None:
            raise UsageError(f"the sink opcua://{host} has the user {named} and no password: give it in AGVAS_OPCUA_PASSWORD")
        return OpcUaSink(host, port or 4840, OpcUaSecurity(**files, user=named, password=secrets.opcua_password))
    if scheme == "modbus":
        from agvas_runtime.sinks.modbus import ModbusSink

        register, unit = _number(parts.path.strip("/") or "0", 65_529), _number(query.get("unit", ["1"])[0], 255)
        return ModbusSink(host, port or 502, register=register, unit=unit)
    from agvas_runtime.sinks.mqtt import MqttSink

    topic = parts.path.lstrip("/")
    if not topic or "+" in topic or "#" in topic:
        raise UsageError(
            f"the sink {scheme}://{host} needs a topic without + and #: write {scheme}://{host}/agvas/{{station}}/verdict"
        )
    tls = scheme == "mqtts"
    retain = query.get("retain", ["0"])[0] == "1"
    user = None if parts.username is None else unquote(parts.username)
    return MqttSink(
        host, port or (8883 if tls else 1883), topic, tls=tls, user=user, password=secrets.mqtt_password, retain=retain
    )


def _number(text: str, most: int) -> int:
    if not text.isdecimal() or int(text) > most:
        raise UsageError(f"a Modbus register or unit is {text!r}; it is a number from 0 to {most}")
    return int(text)
