"""Imported first by a process of a sweep's: imports diffusers as if peft, transformers, SciPy and torchvision weren't installed.

diffusers would import them for what isn't used here (adapters, text encoders, some samplers): a thousand modules that every
process of a sweep, its driver too, would wait for. peft is imported when `train.params` asks for it. Whoever uses the library,
and may need what diffusers does with them, has diffusers as it is.
"""

import gc
import sys

_UNUSED = ("peft", "transformers", "scipy", "torchvision")


def _import_diffusers() -> None:
    absent = [name for name in _UNUSED if name not in sys.modules]
    collects = gc.isenabled()
    gc.disable()  # a seventh of the time: it looks through all these modules again and again, and nothing in them is garbage
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: Python's own way to say that there is no such module
    try:
        from diffusers import DiTTransformer2DModel, UNet2DModel  # noqa: F401
    finally:
        for name in absent:
            del sys.modules[name]
        if collects:
            gc.enable()


_import_diffusers()
