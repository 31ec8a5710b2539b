"""Whether the hub answers."""

from __future__ import annotations

import urllib.error
import urllib.request
from functools import cache


def hub_answers(page: str = "") -> bool:
    """Whether the hub answers, or has a page; asked once, for seconds, where its own client would try again and again.

    Args:
        page: What must be there, such as a model's id. Without one an error is an answer, too.
    """
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, page)


@cache
def _answers(endpoint: str, page: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/{page}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError:
        return not page
    except OSError:
        return False
