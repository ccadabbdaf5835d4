"""Parts asked for by a coil of a PLC, over Modbus TCP.

The PLC sets the coil when a part is in front of the camera, and waits until it is cleared: the part is in the ledger then. Where
``number=REGISTER`` is given, that holding register is the part's number, and a part that was taken just before a crash is not taken
twice. The coil is read every few milliseconds.
"""

from typing import Final

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from agvas_core.contract.errors import LedgerError
from agvas_runtime.triggers.listener import Listener

__all__ = ["ModbusCoil"]

BACK_OFF_S: Final = (0.1, 3.0)
POLL_S: Final = 0.005
TIMEOUT_S: Final = 1.0


class ModbusCoil:
    """One coil of one PLC."""

    def __init__(self, host: str, port: int, *, coil: int, unit: int = 1, number: int | None = None) -> None:
        self.name = f"modbus:{host}:{port}/{coil}@{unit}"
        self.back_off_s = BACK_OFF_S
        self._host, self._port, self._coil, self._unit, self._number = host, port, coil, unit, number

    def listen(self, listener: Listener) -> str:
        """Polls until it is stopped, or the PLC is lost or refuses something; why."""
        client = ModbusTcpClient(self._host, port=self._port, timeout=TIMEOUT_S, retries=0)
        try:
            return self._watch(client, listener) if client.connect() else "it is not there"
        except (ModbusException, OSError) as error:
            return f"it does not answer ({error})"
        finally:
            client.close()

    def _watch(self, client: ModbusTcpClient, listener: Listener) -> str:
        while not listener.stop.wait(POLL_S):
            coil = client.read_coils(self._coil, count=1, device_id=self._unit)
            if coil.isError() or not coil.bits:
                return f"it does not give coil {self._coil}: {coil}"
            listener.heard()
            if not coil.bits[0]:
                continue
            key = None
            if self._number is not None:
                register = client.read_holding_registers(self._number, count=1, device_id=self._unit)
                if register.isError() or len(register.registers) != 1:
                    return f"it does not give register {self._number}: {register}"
                key = f"{self.name}#{register.registers[0]}"
            try:
                listener.fire(None, key)
            except LedgerError:  # the coil stays set: the PLC gets no acknowledgement, and it is tried again
                listener.stop.wait(BACK_OFF_S[0])
                continue
            cleared = client.write_coil(self._coil, False, device_id=self._unit)
            if cleared.isError():
                return f"it does not let coil {self._coil} be cleared: {cleared}"
        return "stopped"
