"""The last verdict in the holding registers of a PLC, written over Modbus TCP. The only module that imports pymodbus.

Registers from the first one on, written by one request, so that the PLC never sees half of it:

    +0, +1   number of the part, high word first
    +2       verdict: 1 PASS, 2 FAIL, 3 NO_VERDICT
    +3       cause of NO_VERDICT: 0 none, 1 deadline, 2 source, 3 engine, 4 disk, 5 recipe
    +4       findings
    +5       reject score, in thousandths
    +6       number of the part again, low word: equal to +1 once all is there
"""

from typing import Final

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from agvas_core.contract.errors import DeliveryError
from agvas_runtime.sinks.message import Message

__all__ = ["CAUSES", "VERDICTS", "ModbusSink", "registers_of"]

VERDICTS: Final = {"PASS": 1, "FAIL": 2, "NO_VERDICT": 3}
CAUSES: Final = {None: 0, "deadline": 1, "source": 2, "engine": 3, "disk": 4, "recipe": 5}
TIMEOUT_S: Final = 3.0


def registers_of(message: Message) -> list[int]:
    """The seven words of a message."""
    body, number = message.body, message.number
    score = 0 if body["score"] is None else round(float(body["score"]) * 1000)
    return [
        number >> 16 & 0xFFFF,
        number & 0xFFFF,
        VERDICTS[body["verdict"]],
        CAUSES[body["cause"]],
        min(len(body["findings"]), 0xFFFF),
        score,
        number & 0xFFFF,
    ]


class ModbusSink:
    """One PLC."""

    def __init__(self, host: str, port: int = 502, *, register: int = 0, unit: int = 1, timeout_s: float = TIMEOUT_S) -> None:
        self.name = f"modbus:{host}:{port}/{register}@{unit}"
        self._host, self._port, self._register, self._unit, self._timeout_s = host, port, register, unit, timeout_s
        self._client: ModbusTcpClient | None = None

    def open(self) -> None:
        """Connects."""
        self.close()
        client = ModbusTcpClient(self._host, port=self._port, timeout=self._timeout_s, retries=0)
        if not client.connect():
            client.close()
            raise DeliveryError(f"the PLC {self._host}:{self._port} is not there")
        self._client = client

    def send(self, message: Message) -> None:
        """Writes the registers, and waits for the PLC's answer."""
        assert self._client is not None, "open() comes first"
        try:
            answer = self._client.write_registers(self._register, registers_of(message), device_id=self._unit)
        except (ModbusException, OSError) as error:
            raise DeliveryError(f"the PLC {self._host}:{self._port} does not answer ({error})") from error
        if answer.isError():
            raise DeliveryError(
                f"the PLC {self._host}:{self._port} does not take registers {self._register} to {self._register + 6}: {answer}"
            )

    def close(self) -> None:
        """Disconnects."""
        if self._client is not None:
            self._client.close()
            self._client = None
