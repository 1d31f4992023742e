"""The folder that holds Redis' data: one launcher at a time."""

import fcntl
import os
import time
from pathlib import Path

from core.errors import VectorApiError
from launcher.keeper import lives


class DataFolderInUse(VectorApiError):
    code = "data_folder_in_use"


class DataFolder:
    """Exclusive use of a folder, from `take` to `release`.

    The lock belongs to an open file. A Redis server that inherits `lock_file` holds it too: should the launcher be killed, the
    folder is free when the last of the two has ended.
    """

    def __init__(self, path: Path, *, wait_seconds: float = 30) -> None:
        self.path = path.absolute()
        self.lock_file: int | None = None
        self._wait_seconds = wait_seconds

    def take(self) -> int:
        """The lock file, open and locked.

        Raises:
            DataFolderInUse: another launcher has the folder, or it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock_file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataFolderInUse(
                f"the data folder {self.path} cannot be used ({error.strerror}); DATA_DIR names another", param="DATA_DIR"
            ) from None
        deadline = time.monotonic() + self._wait_seconds
        while not _locked(self.lock_file):
            owner = os.pread(self.lock_file, 32, 0).decode().strip()
            # An owner that was killed leaves a Redis server that is just being stopped.
            if (owner and lives(int(owner))) or time.monotonic() > deadline:
                self.release()
                raise DataFolderInUse(
                    f"another launcher{f' (process {owner})' if owner else ''} uses the data folder {self.path}. Stop it with "
                    "Ctrl-C first, or give this one a folder and a port of its own: DATA_DIR=.data-2 API_PORT=8001 make run",
                    param="DATA_DIR",
                )
            time.sleep(0.1)
        os.ftruncate(self.lock_file, 0)
        os.pwrite(self.lock_file, f"{os.getpid()}\n".encode(), 0)
        return self.lock_file

    def release(self) -> None:
        """Let others have the folder; does nothing when it is not ours."""
        if self.lock_file is not None:
            os.close(self.lock_file)
            self.lock_file = None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
