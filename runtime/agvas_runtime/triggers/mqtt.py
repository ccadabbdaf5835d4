"""Parts asked for over MQTT, quality of service 1: the broker hears that a message was taken when the part is in the ledger.

The payload is the part's key, as text; an empty one gets a key of its own. ``{station}`` in the topic is the station that is meant; without it
every station of this trigger takes a part. What was published while nobody listened is not kept, and a retained message is no trigger:
the part that was meant has passed the camera.
"""

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from agvas_core.contract.errors import LedgerError, UsageError
from agvas_runtime.triggers.protocol import Fire

__all__ = ["MqttTrigger"]

log = logging.getLogger("agvas.line")

BACK_OFF_S: Final = (0.2, 5.0)
KEEPALIVE_S: Final = 5  # a broker that is gone without a word is noticed after one and a half of these
CONNECT_S: Final = 5.0
LOOP_S: Final = 0.1
KEY_BYTES_MOST: Final = 200


class MqttTrigger:
    """One topic of a broker."""

    def __init__(
        self, host: str, port: int, topic: str, *, tls: bool = False, user: str | None = None, password: str | None = None
    ) -> None:
        self.name = f"mqtt:{host}:{port}/{topic}"
        self.last_error: str | None = None
        self.failure: BaseException | None = None
        self._host, self._port, self._topic = host, port, topic
        self._tls, self._user, self._password = tls, user, password
        self._stop = threading.Event()
        self._random = random.Random()
        self._thread: threading.Thread | None = None

    def start(self, fire: Fire, note: Callable[[str, str], None]) -> None:
        """Begins to listen."""
        self._fire, self._note = fire, note
        self._thread = threading.Thread(target=self._run, name="agvas-trigger-mqtt", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leaves the broker."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        wait_s = BACK_OFF_S[0]
        try:
            while not self._stop.is_set():
                client = self._client()
                self._subscribed, self._refusal = False, ""
                why = self._listen(client)
                client.disconnect()
                if self._stop.is_set():
                    return
                wait_s = BACK_OFF_S[0] if self._subscribed else wait_s
                if self.last_error is None:
                    self._note("trigger-lost", f"{self.name}: {why}")
                self.last_error = why
                self._stop.wait(wait_s * self._random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, BACK_OFF_S[1])
        except BaseException as error:  # whoever runs the line sees it and ends
            self.failure = error

    def _listen(self, client: mqtt.Client) -> str:
        """Until it is told to stop, or the broker is lost; why it is."""
        began_s = time.monotonic()
        try:
            client.connect(self._host, self._port, keepalive=KEEPALIVE_S)
            while not self._stop.is_set():
                code = client.loop(timeout=LOOP_S)
                if code != mqtt.MQTT_ERR_SUCCESS:
                    return str(mqtt.error_string(code))
                if self._refusal:
                    return self._refusal
                if not self._subscribed and time.monotonic() - began_s > CONNECT_S:
                    return f"it has not answered within {CONNECT_S:g} s"
        except (OSError, ValueError) as error:
            return f"it is not there ({error})"
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
        if self.last_error is not None:
            self._note("trigger-back", self.name)
        self.last_error = None

    def _on_message(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            self._note("trigger-refused", f"{self.name}: a retained message is no trigger; publish without retain")
            client.ack(message.mid, message.qos)
            return
        try:
            self._fire(self._station(message.topic), self._key(message.payload))
        except UsageError as error:
            self._note("trigger-refused", f"{self.name}: {error}")
        except LedgerError as error:  # not acknowledged: the broker sends it again, to whoever listens then
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
