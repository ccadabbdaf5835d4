"""Parts asked for over MQTT, quality of service 1: a message is acknowledged when the part is in the ledger.

The payload is the part's key, as text; an empty one gets a key of its own. ``{station}`` in the topic is the station that is meant; without it
every station of this trigger takes a part. What was published while the line was down is not kept, and a retained message is no trigger:
the part that was meant has passed the camera.
"""

import logging
import ssl
import time
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from agvas_core.contract.errors import LedgerError, UsageError
from agvas_runtime.triggers.listener import Listener

__all__ = ["MqttTopic"]

log = logging.getLogger("agvas.line")

BACK_OFF_S: Final = (0.2, 5.0)
KEEPALIVE_S: Final = 5  # a broker that is gone without a word is noticed after one and a half of these
CONNECT_S: Final = 5.0
LOOP_S: Final = 0.1
KEY_BYTES_MOST: Final = 200


class MqttTopic:
    """One topic of a broker."""

    def __init__(
        self, host: str, port: int, topic: str, *, tls: bool = False, user: str | None = None, password: str | None = None
    ) -> None:
        self.name = f"mqtt:{host}:{port}/{topic}"
        self.back_off_s = BACK_OFF_S
        self._host, self._port, self._topic = host, port, topic
        self._tls, self._user, self._password = tls, user, password

    def listen(self, listener: Listener) -> str:
        """Until it is stopped, or the broker is lost; why it is."""
        self._listener, self._subscribed, self._refusal = listener, False, ""
        client = self._client()
        began_s = time.monotonic()
        try:
            client.connect(self._host, self._port, keepalive=KEEPALIVE_S)
            while not listener.stop.is_set():
                code = client.loop(timeout=LOOP_S)
                if code != mqtt.MQTT_ERR_SUCCESS:
                    return str(mqtt.error_string(code))
                if self._refusal:
                    return self._refusal
                if not self._subscribed and time.monotonic() - began_s > CONNECT_S:
                    return f"it has not answered within {CONNECT_S:g} s"
        except (OSError, ValueError) as error:
            return f"it is not there ({error})"
        finally:
            client.disconnect()
        return "stopped"

    def _client(self) -> mqtt.Client:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311, manual_ack=True)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = lambda client, *_: client.subscribe(self._topic.replace("{station}", "+"), qos=1)
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_subscribe(self, client: mqtt.Client, _data: Any, _mid: int, codes: list[ReasonCode], *_: Any) -> None:
        if not codes or any(code.is_failure for code in codes):
            self._refusal = f"it does not let us subscribe to {self._topic} ({', '.join(map(str, codes)) or 'no reason'})"
            return
        self._subscribed = True
        self._listener.heard()

    def _on_message(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            self._listener.note("trigger-refused", f"{self.name}: a retained message is no trigger; publish without retain")
            client.ack(message.mid, message.qos)
            return
        try:
            self._listener.fire(self._station(message.topic), self._key(message.payload))
        except UsageError as error:
            self._listener.note("trigger-refused", f"{self.name}: {error}")
        except LedgerError as error:  # not acknowledged: the broker sends it again
            log.error("%s: %s", self.name, error)
            return
        client.ack(message.mid, message.qos)

    def _station(self, topic: str) -> str | None:
        if "{station}" not in self._topic:
            return None
        wanted, found = self._topic.split("/"), topic.split("/")
        return next(level for pattern, level in zip(wanted, found, strict=True) if "{station}" in pattern)

    def _key(self, payload: bytes) -> str | None:
        if not payload:
            return None
        try:
            key = payload.decode("utf-8")
        except UnicodeDecodeError:
            key = ""
        if not (len(payload) <= KEY_BYTES_MOST and key.isprintable() and key):
            raise UsageError(
                f"the key is {payload[:40]!r}; up to {KEY_BYTES_MOST} bytes of text that can be printed are possible"
            )
        return key
