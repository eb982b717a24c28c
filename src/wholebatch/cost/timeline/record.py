"""What a recording keeps of the timeline."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Timeline(BaseModel):
    """To be filled."""

    model_config = ConfigDict(extra="forbid")
