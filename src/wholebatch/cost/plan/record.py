"""What a recording keeps of the plan."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Plan(BaseModel):
    """To be filled."""

    model_config = ConfigDict(extra="forbid")
