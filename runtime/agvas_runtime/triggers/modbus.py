"""Parts asked for by a coil of a PLC, over Modbus TCP.

The PLC sets the coil when a part is in front of the camera, and waits until it is cleared: the part is in the ledger then. Where
``number=REGISTER`` is given, that holding register is the part's number, and a part that was taken just before a crash is not taken
twice. The coil is read every few milliseconds.
"""

import random
import threading
from collections.abc import Callable
from typing import Final

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from agvas_core.contract.errors import LedgerError
from agvas_runtime.triggers.protocol import Fire

__all__ = ["ModbusTrigger"]

BACK_OFF_S: Final = (0.1, 3.0)
POLL_S: Final = 0.005
TIMEOUT_S: Final = 1.0


class ModbusTrigger:
    """One coil of one PLC."""

    def __init__(self, host: str, port: int, *, coil: int, unit: int = 1, number: int | None = None) -> None:
        self.name = f"modbus:{host}:{port}/{coil}@{unit}"
        self.last_error: str | None = None
        self.failure: BaseException | None = None
        self._host, self._port, self._coil, self._unit, self._number = host, port, coil, unit, number
        self._stop = threading.Event()
        self._random = random.Random()
        self._thread: threading.Thread | None = None

    def start(self, fire: Fire, note: Callable[[str, str], None]) -> None:
        """Begins to look."""
        self._fire, self._note = fire, note
        self._thread = threading.Thread(target=self._run, name="agvas-trigger-modbus", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leaves the PLC."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        wait_s = BACK_OFF_S[0]
        try:
            while not self._stop.is_set():
                self._heard = False
                client = ModbusTcpClient(self._host, port=self._port, timeout=TIMEOUT_S, retries=0)
                try:
                    why = self._watch(client) if client.connect() else "it is not there"
                except (ModbusException, OSError) as error:
                    why = f"it does not answer ({error})"
                finally:
                    client.close()
                if self._stop.is_set():
                    return
                wait_s = BACK_OFF_S[0] if self._heard else wait_s
                if self.last_error is None:
                    self._note("trigger-lost", f"{self.name}: {why}")
                self.last_error = why
                self._stop.wait(wait_s * self._random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, BACK_OFF_S[1])
        except BaseException as error:  # whoever runs the line sees it and ends
            self.failure = error

    def _watch(self, client: ModbusTcpClient) -> str:
        """Until it is told to stop, or the PLC refuses something; why."""
        while not self._stop.wait(POLL_S):
            coil = client.read_coils(self._coil, count=1, device_id=self._unit)
            if coil.isError() or not coil.bits:
                return f"it does not give coil {self._coil}: {coil}"
            self._heard = True
            if self.last_error is not None:
                self._note("trigger-back", self.name)
                self.last_error = None
            if not coil.bits[0]:
                continue
            key = None
            if self._number is not None:
                register = client.read_holding_registers(self._number, count=1, device_id=self._unit)
                if register.isError() or len(register.registers) != 1:
                    return f"it does not give register {self._number}: {register}"
                key = f"{self.name}#{register.registers[0]}"
            try:
                self._fire(None, key)
            except LedgerError:  # the coil stays set: the PLC is not told that it was taken, and it is tried again
                self._stop.wait(BACK_OFF_S[0])
                continue
            cleared = client.write_coil(self._coil, False, device_id=self._unit)
            if cleared.isError():
                return f"it does not let coil {self._coil} be cleared: {cleared}"
        return "stopped"
