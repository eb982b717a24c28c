"""What a recording keeps of the profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Profile(BaseModel):
    """To be filled."""

    model_config = ConfigDict(extra="forbid")
