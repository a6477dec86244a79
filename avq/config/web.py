"""The table ``[web]``: where the page of a run listens, and what visitors must show."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from pydantic import Field, model_validator

from avq.config.values import Document, Switch, Text

Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Token = Annotated[str, Field(min_length=16, pattern=r"^[A-Za-z0-9._~-]+$")]


class WebConfig(Document):
    """The page of a run, its health and its metrics."""

    enabled: Switch = Field(default=True, title="Web", description="false: no page, no metrics, no port")
    host: Text = Field(
        default="127.0.0.1",
        title="Web address",
        description="where to listen; one that other machines can reach needs a token",
    )
    port: Port = Field(default=8787, title="Web port", description="0 to 65535; 0 takes a free one")
    token: Token | None = Field(
        default=None,
        title="Web token",
        description="what visitors must show: 16 or more letters, digits, '.', '_', '~', '-'",
    )

    @model_validator(mode="after")
    def _others_need_a_token(self) -> WebConfig:
        if self.enabled and self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"other machines can reach {self.host}, so visitors must show a token: "
                'give token = "..." with 16 characters or more'
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost may mean anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
