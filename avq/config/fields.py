"""Value types of configuration files, and the base model of their tables."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


def _as_option(value: Any) -> Any:
    """Turn an option value into text; the strategy's options model parses it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def path_context(folder: Path, flags: Collection[str] = ()) -> dict[str, Any]:
    """Return the validation context that resolves paths against ``folder``, except for keys in ``flags``."""
    return {"folder": folder, "flags": flags}


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    context = info.context or {}
    if not context or info.field_name in context["flags"] or path == Path():
        return path
    return Path(context["folder"]) / path


def _resolve_name_or_file(name: str, info: ValidationInfo) -> str:
    """Resolve a file in the document's folder if it exists; otherwise keep the name."""
    context = info.context or {}
    if not context or info.field_name in context["flags"]:
        return name
    path = Path(context["folder"]) / name
    return str(path) if path.is_file() else name


def _resolve_uri(uri: str, info: ValidationInfo) -> str:
    """Resolve a plain path against the document's folder; keep "-" and URIs with a scheme."""
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
NameOrFile = Annotated[str, Field(min_length=1), AfterValidator(_resolve_name_or_file)]
FilePath = Annotated[Path, AfterValidator(_resolve_path)]
Uri = Annotated[str, Field(min_length=1), AfterValidator(_resolve_uri)]
Names = Annotated[tuple[Text, ...], Field(min_length=1)]


class Document(BaseModel):
    """Base of all tables: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
