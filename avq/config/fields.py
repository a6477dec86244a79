"""The kinds of value a configuration file may hold, and the document they stand in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


def _as_option(value: Any) -> Any:
    """Option values become text; the strategy's own model gives them their type."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def beside(folder: Path, flags: Collection[str] = ()) -> dict[str, Any]:
    """The validation context of a file in ``folder``: what came as a flag keeps its path."""
    return {"folder": folder, "flags": flags}


def _path_beside(path: Path, info: ValidationInfo) -> Path:
    context = info.context or {}
    if not context or info.field_name in context["flags"] or path == Path():
        return path
    return Path(context["folder"]) / path


def _file_beside(name: str, info: ValidationInfo) -> str:
    """A file beside the document where there is one; else the name is one that avq knows."""
    context = info.context or {}
    if not context or info.field_name in context["flags"]:
        return name
    beside = Path(context["folder"]) / name
    return str(beside) if beside.is_file() else name


def _uri_beside(uri: str, info: ValidationInfo) -> str:
    """Plain paths are relative to the file; anything with a scheme, and "-", is left as it is."""
    if not info.context or uri == "-" or ":" in uri.partition("?")[0]:
        return uri
    return str(Path(info.context["folder"]) / uri)


OptionValue = Annotated[str, BeforeValidator(_as_option)]
Count = Annotated[int, Field(strict=True, ge=1)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=86_400, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Ratio = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
NameOrFile = Annotated[str, Field(min_length=1), AfterValidator(_file_beside)]
FilePath = Annotated[Path, AfterValidator(_path_beside)]
Uri = Annotated[str, Field(min_length=1), AfterValidator(_uri_beside)]
Names = Annotated[tuple[Text, ...], Field(min_length=1)]


class Document(BaseModel):
    """Unknown keys are refused; what was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
