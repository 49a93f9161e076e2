"""Tasks that stage 1's workers cannot do. A small file, because each worker imports it."""

import os
import signal
import time
from dataclasses import dataclass

from dtsf.errors import DataError


@dataclass
class TellingTask:
    """A task that ends with the GPU that its worker sees; shard 0 never ends."""

    shard: int

    @property
    def dataset(self):
        if self.shard == 0:
            time.sleep(600)
        raise DataError(os.environ["CUDA_VISIBLE_DEVICES"])


@dataclass
class DeadlyTask:
    """A task that kills its worker, as the kernel does without memory."""

    shard: int

    @property
    def dataset(self):
        os.kill(os.getpid(), signal.SIGKILL)
