"""How Axolotl itself reads a configuration: `python -m pact_axolotl.check.validation CONFIG ANSWER`, run by its Python.

Nothing is trained, downloaded or written but the answer, a JSON object. What depends on the hardware is left to the
run, as Axolotl leaves it to its workers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

from pact_axolotl.check.config_file import with_known_plugin
from pact_plugin.errors import PactError


def validated(config: Path) -> dict[str, Any]:
    """What Axolotl finds wrong in a configuration, and what of `pact` it keeps.

    Returns:
        `problems` (objects with key, value, problem and remedy) and `pact` (as Axolotl's schema keeps it).
    """
    content = with_known_plugin(yaml.safe_load(config.read_text(encoding="utf-8")))
    problems, kept = _validated(content)
    return {"problems": problems, "pact": kept}


def _validated(content: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    cfg = DictDefault(content)
    try:
        prepare_plugins(cfg)
        kept = validate_config(cfg).get("pact")
    except PactError as error:  # it hides what Axolotl finds beside it
        own = {"key": error.key, "value": error.value, "problem": error.problem, "remedy": error.remedy}
        rest = {**content, "pact": False}
        if rest == content:  # a misspelt key, which is refused without a `pact` as well
            rest = {key: value for key, value in content.items() if key != error.key}
        return [own, *(_validated(rest)[0] if rest != content else [])], None
    except ValidationError as error:
        return [_problem(one) for one in error.errors()], None
    return [], kept.to_dict() if isinstance(kept, DictDefault) else kept


def _problem(error: Any) -> dict[str, Any]:
    return {
        "key": ".".join(map(str, error["loc"])) or "config",
        "value": error["input"] if error["loc"] else None,
        "problem": f"Axolotl refuses it: {error['msg']}",
        "remedy": "See Axolotl's documentation of its configuration.",
    }


if __name__ == "__main__":
    answer = json.dumps(validated(Path(sys.argv[1])), default=str)
    Path(sys.argv[2]).write_text(answer, encoding="utf-8")
