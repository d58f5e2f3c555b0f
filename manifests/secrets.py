"""Taking passwords, tokens and signatures out of what is written to tables and logs."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_USER_INFO = re.compile(r"(?<=://)[^/\s?#]+@")  # to the last @: a password may hold some
_QUERY = re.compile(r"(?<=\?)[^\s'\"]+")
_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|AKIA[A-Z0-9]{12,}|ASIA[A-Z0-9]{12,}|"
    r"(?i:bearer)\s+[A-Za-z0-9._~+/-]{8,}=*|ey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_.-]{10,})"
)
_NAMED = re.compile(r"(?i)\b([a-z_]*(?:token|secret|password|api_?key)[a-z_]*\s*[=:]\s*)[^\s,;&]+")

# The parameters by which stores sign an address (AWS, Google, Azure, CloudFront), and the names
# under which others hand out tokens.
_SIGNING = re.compile(
    r"(?i)^(x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"se|sp|sv|sr|st|sip|spr|sig|skoid|sktid|skt|ske|sks|skv|ss|srt|"
    r".*(token|secret|password|passwd|auth|api_?key|access_?key|credential).*)$"
)


def scrub(text: str) -> str:
    """Return the text without what may be a secret: of URLs the user and the query, and tokens."""
    if "://" in text:
        text = _QUERY.sub("...", _USER_INFO.sub("...@", text))
    return _NAMED.sub(r"\1...", _TOKENS.sub("...", text))


def scrub_uri(uri: str) -> str:
    """Return a URI without its user and without the parameters that sign it.

    What names the photo stays (`?id=7`), so that the URI still tells one from another; a path and
    a URI without secrets come back as they are.
    """
    if "://" not in uri:
        return uri
    uri = _USER_INFO.sub("", uri, count=1)
    base, mark, query = uri.partition("?")
    if not mark:
        return uri
    kept = [p for p in query.split("&") if not _SIGNING.match(unquote_plus(p.partition("=")[0]))]
    return f"{base}?{'&'.join(kept)}" if kept else base
