"""Verdicts to an MQTT broker, quality of service 1: the broker has acknowledged each before it leaves the outbox.

The only module that imports paho.
"""

import ssl
import time
from collections.abc import Callable

import paho.mqtt.client as mqtt

from agvas_core.contract.errors import DeliveryError
from agvas_runtime.sinks.message import Message

__all__ = ["MqttSink"]

TIMEOUT_S = 10.0
KEEPALIVE_S = 3600  # a connection that broke is noticed by the next message


class MqttSink:
    """One topic of a broker. ``{station}`` in the topic is replaced by the station's name."""

    def __init__(
        self,
        host: str,
        port: int,
        topic: str,
        *,
        tls: bool = False,
        user: str | None = None,
        password: str | None = None,
        retain: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name = f"mqtt:{host}:{port}/{topic}"
        self._host, self._port, self._topic = host, port, topic
        self._tls, self._user, self._password, self._retain, self._timeout_s = tls, user, password, retain, timeout_s
        self._client: mqtt.Client | None = None
        self._silence = ""
        """Why the broker's last answer did not come."""

    def open(self) -> None:
        """Connects again; a client of its own each time, so that nothing of an old connection is sent beside the outbox."""
        self.close()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls:
            client.tls_set_context(ssl.create_default_context())
        answers: list[str] = []
        client.on_connect = lambda _client, _data, _flags, reason, _properties: answers.append(str(reason))
        try:
            client.connect(self._host, self._port, keepalive=KEEPALIVE_S)
            self._loop(client, lambda: bool(answers))
        except (OSError, ValueError) as error:
            raise DeliveryError(f"the broker {self._host}:{self._port} is not there ({error})") from error
        if answers != ["Success"]:
            client.disconnect()
            raise DeliveryError(
                f"the broker {self._host}:{self._port} does not let us in ({answers[0] if answers else 'silence'})"
            )
        self._client = client

    def send(self, message: Message) -> None:
        """Publishes, and waits for the broker's PUBACK."""
        assert self._client is not None, "open() comes first"
        topic = self._topic.replace("{station}", str(message.body.get("station", "")))
        try:
            sent = self._client.publish(topic, message.encode(), qos=1, retain=self._retain)
            self._loop(self._client, sent.is_published)
            acknowledged = sent.is_published()
        except (OSError, RuntimeError, ValueError) as error:
            raise DeliveryError(f"the broker {self._host}:{self._port} took no message: {error}") from error
        if not acknowledged:
            raise DeliveryError(f"the broker {self._host}:{self._port} has not acknowledged a message: {self._silence}")

    def close(self) -> None:
        """Leaves the broker."""
        if self._client is not None:
            client, self._client = self._client, None
            client.disconnect()

    def _loop(self, client: mqtt.Client, done: Callable[[], bool]) -> None:
        """Talks with the broker until ``done``, in the caller's thread."""
        end = time.monotonic() + self._timeout_s
        self._silence = f"nothing came within {self._timeout_s:g} s"
        while not done() and time.monotonic() < end:
            if (code := client.loop(timeout=0.05)) != mqtt.MQTT_ERR_SUCCESS:
                self._silence = f"the connection broke ({mqtt.error_string(code)})"
                return
