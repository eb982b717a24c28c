"""What a recording keeps of the comparison."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Comparison(BaseModel):
    """To be filled."""

    model_config = ConfigDict(extra="forbid")
