"""Multi-view action recognition from temporal thumbnails: DTSFNet in two stages.

```python
import dtsf

dtsf.preprocess("nucla", root="data/nucla", cache="cache")          # stage 1
dtsf.train("cache", protocol="cross-subject:5,6", run="runs/one")   # stage 2
dtsf.load("runs/one").predict(["cam1.mp4", "cam2.mp4", "cam3.mp4"])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtsf.api import Prediction, Run, load, open_cache, preprocess, train
    from dtsf.errors import DtsfError
    from dtsf.experiments.ablation import ablate
    from dtsf.experiments.crossval import crossval

__all__ = ["DtsfError", "Prediction", "Run", "ablate", "crossval", "load", "open_cache", "preprocess", "train"]


def __getattr__(name: str) -> object:
    # Import on first use, so that `import dtsf` and every command start fast.
    if name not in __all__:
        raise AttributeError(f"module 'dtsf' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    homes = {"DtsfError": "dtsf.errors", "ablate": "dtsf.experiments.ablation", "crossval": "dtsf.experiments.crossval"}
    return getattr(importlib.import_module(homes.get(name, "dtsf.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
