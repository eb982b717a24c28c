"""The arithmetic on one worker's part: native (C++) where it was built, the torch reference everywhere."""

from wholebatch.kernels.native import (
    instruction_set,
    native_available,
    native_module,
    product_unit,
    say_no_product_unit,
)

__all__ = ["instruction_set", "native_available", "native_module", "product_unit", "say_no_product_unit"]
