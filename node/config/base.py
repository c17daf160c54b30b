"""What every table of config.toml is: frozen, complete, and without unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of the file. A field's description says what is allowed; errors quote it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )
