"""The key `pact` in Axolotl's configuration schema. Keys that no plugin declares are dropped."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator


class PactArgs(BaseModel):
    """What `PactPlugin` adds to Axolotl's configuration."""

    pact: bool | dict[str, Any] | None = Field(
        default=None,
        json_schema_extra={
            "description": "Constrain the run (PACT): true, false, or a block of pact_plugin.PactConfig's settings."
        },
    )

    @field_validator("pact", mode="before")
    @classmethod
    def _valid(cls, value: Any) -> Any:
        from pact_axolotl.settings import settings

        settings({"pact": value})
        return value
