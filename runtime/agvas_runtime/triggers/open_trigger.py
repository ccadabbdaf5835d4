"""From a trigger's address to a trigger.

free                                     none: the camera runs free, or is triggered itself
software                                 the Python interface alone
http:PORT, http://HOST:PORT              POST /trigger, on loopback; on another address of this machine with a key
mqtt://[USER@]HOST[:1883]/TOPIC          mqtts:// with TLS; {station} in the topic
modbus://HOST[:502]/COIL?unit=1&number=REGISTER
"""

from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from agvas_core.contract.errors import UsageError
from agvas_core.contract.network import check_key, is_loopback
from agvas_core.contract.validation import nearest
from agvas_runtime.triggers.listener import Listener
from agvas_runtime.triggers.protocol import TriggerListener

__all__ = ["FREE", "SOFTWARE", "check_trigger", "open_trigger"]

FREE: Final = "free"
SOFTWARE: Final = "software"
SCHEMES: Final = ("http", "mqtt", "mqtts", "modbus")


def check_trigger(address: str) -> None:
    """Raises UsageError where no trigger can be meant, without opening anything."""
    if address in (FREE, SOFTWARE):
        return
    scheme, _, rest = address.partition(":")
    if scheme not in SCHEMES:
        meant = f"did you mean {near}? " if (near := nearest(scheme, (FREE, SOFTWARE, *SCHEMES))) else ""
        raise UsageError(f"the trigger {address!r} is unknown: {meant}there are free, software, http:PORT, mqtt:// and modbus://")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"the trigger {scheme}: is no address: check host and port") from None
    if parts.password is not None:
        raise UsageError(
            f"the trigger {scheme}://{host} has a password in its address, where others read it: AGVAS_MQTT_PASSWORD"
        )
    if scheme == "http" and not rest.startswith("//"):
        _number(rest, "port")
    elif not host or (scheme == "http" and port is None):
        raise UsageError(f"the trigger {scheme}: has no host{' or port' if scheme == 'http' else ''}: write {scheme}://HOST...")
    if scheme.startswith("mqtt"):
        topic = parts.path.lstrip("/")
        if not topic or "+" in topic or "#" in topic:
            raise UsageError(f"the trigger {scheme}://{host} needs a topic without + and #: write {scheme}://{host}/line/trigger")
        if any("{station}" in level and level != "{station}" for level in topic.split("/")) or topic.count("{station}") > 1:
            raise UsageError(f"the topic {topic!r} has {{station}} inside a level, or twice: it stands for one whole level")
    if scheme == "modbus":
        query = parse_qs(parts.query)
        _number(parts.path.strip("/"), "coil")
        for name in query:
            if name not in ("unit", "number"):
                raise UsageError(f"the trigger modbus: has no {name!r}; there are unit and number")
            _number(query[name][0], name)


def open_trigger(address: str, *, mqtt_password: str | None = None, api_key: str | None = None) -> TriggerListener:
    """A trigger that does not listen yet; a port is taken already.

    Args:
        api_key: what an HTTP trigger that other machines reach asks for.

    Raises:
        UsageError: an invalid address, or one that needs a key.
        SetupError: a port that cannot be had.
        ModuleNotFoundError: the trigger's package is not installed; the command names its extra.
    """
    check_trigger(address)
    scheme, _, rest = address.partition(":")
    parts = urlsplit(address)
    host, query = parts.hostname or "127.0.0.1", parse_qs(parts.query)
    if scheme == "http":
        from agvas_runtime.triggers.http import HttpTrigger

        if not rest.startswith("//"):
            return HttpTrigger("127.0.0.1", int(rest))
        if not is_loopback(host):
            check_key(api_key, host)
        return HttpTrigger(host, parts.port or 0, None if is_loopback(host) else api_key)
    if scheme == "modbus":
        from agvas_runtime.triggers.modbus import ModbusCoil

        number = int(query["number"][0]) if "number" in query else None
        unit = int(query.get("unit", ["1"])[0])
        return Listener(ModbusCoil(host, parts.port or 502, coil=int(parts.path.strip("/")), unit=unit, number=number))
    assert scheme in ("mqtt", "mqtts"), f"{address} has no listener"
    from agvas_runtime.triggers.mqtt import MqttTopic

    tls = scheme == "mqtts"
    port = parts.port or (8883 if tls else 1883)
    user = None if parts.username is None else unquote(parts.username)
    return Listener(MqttTopic(host, port, parts.path.lstrip("/"), tls=tls, user=user, password=mqtt_password))


def _number(text: str, what: str) -> int:
    most = 255 if what == "unit" else 65_535
    if not text.isdecimal() or int(text) > most:
        raise UsageError(f"the trigger's {what} is {text!r}; it is a number from 0 to {most}")
    return int(text)
