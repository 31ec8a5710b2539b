"""The JSON schema of `audit.json`, from its classes.

`python tools/audit_schema.py` writes it into `docs/`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pact_plugin.audit.result import AuditResult

FILE = Path(__file__).parents[1] / "docs" / "audit.schema.json"


def audit_schema() -> str:
    """The text of the file."""
    return json.dumps(AuditResult.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(audit_schema(), encoding="utf-8")
