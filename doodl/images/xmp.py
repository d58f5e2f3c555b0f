"""Edit an XMP packet as text: only what is meant to change does."""

import re
from xml.sax.saxutils import quoteattr

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    "</rdf:RDF></x:xmpmeta>\n"
    '<?xpacket end="w"?>'
)
_GPS = re.compile(
    r"""\s+[\w.-]+:GPS\w+\s*=\s*(?:"[^"]*"|'[^']*')"""  # as an attribute
    r"|<([\w.-]+:GPS\w+)\b[^>]*/>"  # as an empty element
    r"|<([\w.-]+:GPS\w+)\b[^>]*>.*?</\2\s*>",  # as an element
    re.DOTALL,
)
_ORIENTATION = re.compile(r"""(tiff:Orientation(?:\s*=\s*["']|>\s*))[2-8]""")


def edit_xmp(packet: bytes | None, *, note: str | None, strip_gps: bool = False) -> bytes | None:
    """Return the packet of the edited photo: upright, noted as edited, its position removed.

    Args:
        packet: the source's, or None.
        note: what was done; None adds no note (and makes no packet where there was none).
    """
    if packet is None and note is None:
        return None
    text = packet.decode("utf-8", "surrogateescape") if packet else _PACKET
    text = _ORIENTATION.sub(r"\g<1>1", text)
    if strip_gps:
        text = _GPS.sub("", text)
    end = re.search(r"</([\w.-]+):RDF\s*>", text)
    if note is not None and end:
        text = text[: end.start()] + _description(text, end[1], note) + text[end.start() :]
    return text.encode("utf-8", "surrogateescape")


def _description(text: str, rdf: str, note: str) -> str:
    about = re.search(rf"""{rdf}:about\s*=\s*(["'].*?["'])""", text)
    source_type = "" if "DigitalSourceType" in text else (
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"'
    )  # fmt: skip
    return (
        f"<{rdf}:Description {rdf}:about={about[1] if about else quoteattr('')}"
        f' xmlns:doodl="https://doodl-batch.github.io/ns/1.0/" doodl:Edit={quoteattr(note)}'
        f"{source_type}/>"
    )
