"""JSON schemas of suites and manifests, for editors: `python -m harness.schema` writes them beside the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.data.manifest import ManifestFile, packed
from harness.suite_file import SuiteFile

SCHEMAS: dict[str, type[BaseModel]] = {
    "suites/suite.schema.json": SuiteFile,
    "data_manifests/manifest.schema.json": ManifestFile,
}


def schema_text(model: type[BaseModel]) -> str:
    """The schema of one kind of file, as it is committed."""
    found: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def path_of(name: str) -> Path:
    """Where a schema lies in this checkout or wheel."""
    folder, _, file = name.partition("/")
    return packed(folder) / file


if __name__ == "__main__":
    for name, model in SCHEMAS.items():
        path_of(name).write_text(schema_text(model), encoding="utf-8")
