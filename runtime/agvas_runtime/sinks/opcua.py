"""The last verdict of each station as nodes of an OPC UA server that runs in this process. The only module that imports asyncua.

    Objects / AGVAS / <station> / Seq, Key, Trigger, Triggered, Verdict, Cause, Detail, Score, Findings, Product, Recipe, Bundle, Image

Node ids are ``ns=2;s=<station>.Verdict`` and so on. ``Seq`` is written last: a client that subscribes to it finds all others of that part in
place. Without a certificate the server is open to every client: keep it on loopback or a closed network. With one, clients must sign
and encrypt (Basic256Sha256), and may be asked for a user name, or be known by certificates of their own.
"""

import asyncio
import hmac
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

from asyncua import Server, ua
from asyncua.crypto.truststore import TrustStore
from asyncua.crypto.validator import CertificateValidator, CertificateValidatorOptions
from asyncua.server.user_managers import User, UserRole

from agvas_core.contract.errors import DeliveryError, UsageError
from agvas_runtime.sinks.message import Message

__all__ = ["NAMESPACE", "OpcUaSecurity", "OpcUaSink"]

NAMESPACE: Final = "urn:agvas:line"
TIMEOUT_S: Final = 10.0
START_S: Final = 120.0  # the standard's own nodes take seconds to build, and longer on a busy machine
FIELDS: Final[dict[str, tuple[str, ua.VariantType]]] = {
    "Key": ("key", ua.VariantType.String),
    "Trigger": ("trigger_key", ua.VariantType.String),
    "Triggered": ("triggered_utc", ua.VariantType.String),
    "Verdict": ("verdict", ua.VariantType.String),
    "Cause": ("cause", ua.VariantType.String),
    "Detail": ("detail", ua.VariantType.String),
    "Score": ("score", ua.VariantType.Double),
    "Findings": ("findings", ua.VariantType.Int32),
    "Product": ("product", ua.VariantType.String),
    "Recipe": ("recipe", ua.VariantType.String),
    "Bundle": ("bundle", ua.VariantType.String),
    "Image": ("image_sha256", ua.VariantType.String),
    "Seq": ("seq", ua.VariantType.Int64),
}


class _OneUser:
    """Asked by the server who a client is."""

    def __init__(self, security: "OpcUaSecurity") -> None:
        self._user, self._password = (security.user or "").encode(), (security.password or "").encode()

    def get_user(
        self, iserver: object, username: str | None = None, password: str | None = None, certificate: object = None
    ) -> User | None:
        """A user who may read, or None."""
        given = (username or "").encode(), (password or "").encode()
        right = hmac.compare_digest(given[0], self._user) & hmac.compare_digest(given[1], self._password)
        return User(role=UserRole.User) if right else None


def _format_of(path: Path) -> str:
    return "pem" if path.read_bytes().lstrip().startswith(b"-----") else "der"


class OpcUaSecurity(NamedTuple):
    """Who may connect, and how."""

    certificate: Path
    """Of this server, DER or PEM."""
    key: Path
    """Its private key, PEM."""
    trusted: Path | None = None
    """Folder with the certificates of the clients that may connect (DER); any client where None."""
    user: str | None = None
    """Clients must give this name and ``password``; they need none where None."""
    password: str | None = None


class OpcUaSink:
    """The server and its thread."""

    def __init__(self, host: str = "127.0.0.1", port: int = 4840, security: OpcUaSecurity | None = None) -> None:
        """Raises UsageError where a file of ``security`` is not there."""
        for path in (security.certificate, security.key, security.trusted) if security is not None else ():
            if path is not None and not path.exists():
                raise UsageError(f"the OPC UA sink's {path} is not there: check its name and who may read it")
        self._security = security
        self.name = f"opcua:{host}:{port}"
        self.endpoint = f"opc.tcp://{host}:{port}/agvas/"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._index = 2
        self._nodes: dict[str, dict[str, Any]] = {}

    def open(self) -> None:
        """Starts the server."""
        self.close()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agvas-opcua", daemon=True)
        self._thread.start()
        try:
            self._wait(self._start(), START_S)
        except (OSError, ua.UaError, TimeoutError, ValueError) as error:
            self.close()
            raise DeliveryError(f"no OPC UA server at {self.endpoint} ({error}): check port, certificate and key") from error

    def send(self, message: Message) -> None:
        """Writes the nodes of the message's station."""
        try:
            self._wait(self._write(message))
        except (ua.UaError, TimeoutError) as error:
            raise DeliveryError(f"{self.endpoint} does not take part {message.number}: {error}") from error

    def close(self) -> None:
        """Stops the server."""
        if self._loop is None or self._thread is None:
            return
        if self._server is not None:
            self._wait(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self._server = None
        self._nodes = {}

    def _wait(self, work: Any, timeout_s: float = TIMEOUT_S) -> Any:
        assert self._loop is not None, "open() comes first"
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result(timeout_s)
        except TimeoutError:
            running.cancel()
            raise

    async def _start(self) -> None:
        secured = self._security
        named = secured is not None and secured.user is not None
        server = Server(user_manager=_OneUser(secured) if secured is not None and named else None)
        await server.init()
        server.set_endpoint(self.endpoint)
        server.set_server_name("AG-VAS")
        if secured is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
            await server.load_certificate(secured.certificate, _format_of(secured.certificate))
            await server.load_private_key(secured.key, format=_format_of(secured.key))
            server.set_identity_tokens([ua.UserNameIdentityToken] if named else [ua.AnonymousIdentityToken])
            if secured.trusted is not None:
                known = TrustStore([secured.trusted], [])
                await known.load()
                options = CertificateValidatorOptions.TRUSTED | CertificateValidatorOptions.PEER_CLIENT
                server.set_certificate_validator(CertificateValidator(options, known))
        self._index = await server.register_namespace(NAMESPACE)
        await server.nodes.objects.add_object(ua.NodeId("AGVAS", self._index), ua.QualifiedName("AGVAS", self._index))
        await server.start()
        self._server = server

    async def _write(self, message: Message) -> None:
        station = str(message.body["station"])
        nodes = self._nodes.get(station) or await self._add(station)
        for name, (key, kind) in FIELDS.items():
            value = message.body.get(key)
            if kind is ua.VariantType.String:
                value = "" if value is None else str(value)
            elif name == "Findings":
                value = len(value or ())
            elif value is None:
                value = 0.0
            await nodes[name].write_value(ua.DataValue(ua.Variant(value, kind)))

    async def _add(self, station: str) -> dict[str, Any]:
        assert self._server is not None
        root = self._server.get_node(ua.NodeId("AGVAS", self._index))
        folder = await root.add_object(ua.NodeId(station, self._index), ua.QualifiedName(station, self._index))
        nodes = {}
        for name, (_, kind) in FIELDS.items():
            empty: Any = "" if kind is ua.VariantType.String else 0.0 if kind is ua.VariantType.Double else 0
            node_id, label = ua.NodeId(f"{station}.{name}", self._index), ua.QualifiedName(name, self._index)
            nodes[name] = await folder.add_variable(node_id, label, ua.Variant(empty, kind))
        self._nodes[station] = nodes
        return nodes
