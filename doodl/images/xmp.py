"""Edit an XMP packet as text: only what is meant to change does.

A parser would write the packet anew, with other prefixes, order and padding. Every pattern here
takes time linear in the packet, whatever is in it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import quoteattr

SourceType = Literal["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"]
"""IPTC's terms for a photo that a trained model has edited, and for one it has made."""

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_GENERATED = "trainedAlgorithmicMedia"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    "</rdf:RDF></x:xmpmeta>\n"
    '<?xpacket end="w"?>'
)
_RDF_END = re.compile(r"</([\w.-]+):RDF\s*>")
_HISTORY = re.compile(r"<xmpMM:History\b[^>]*>")
_PADDING = re.compile(r"(?<=>)\s{64,}(?=<\?xpacket end)")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SOURCE_TYPE = r"Iptc4xmpExt:DigitalSourceType"
# Names of properties. A position goes by more names than EXIF's: drones write their own.
_POSITION = r"(?!xmlns:)[\w.-]+:(?i:\w*(?:gps|latitude|longt?itude)\w*)"
_PROVENANCE = r"dcterms:provenance"
# What speaks of parts that are not delivered (a gain map, a motion photo's video), or shows the
# photo before the edit.
_STALE = (
    r"hdrgm:\w+",
    r"HDRGainMap:\w+",
    r"(?:G?Container):Directory",
    r"GCamera:(?:MotionPhoto|MicroVideo)\w*",
    r"xmp:Thumbnails",
)


@dataclass(frozen=True)
class EditNote:
    """What the delivered photo's XMP says of the edit.

    software: who did it. what: what was done. source_type: what that makes of the photo.
    """

    software: str
    what: str
    source_type: SourceType | None


def edit_xmp(
    packet: bytes | None,
    note: EditNote | None,
    *,
    strip_gps: bool = False,
    strip_provenance: bool = False,
) -> bytes | None:
    """Return the packet of the edited photo: the edit noted, what is no longer true removed.

    A packet that cannot be understood comes back as it is, or not at all where a position must
    not be left in it.

    Args:
        packet: the source's, or None.
        note: for the history and the source type; None adds none (and makes no packet).
        strip_gps: leave out every position. strip_provenance: and the pointer to a C2PA manifest.
    """
    text = packet.decode("utf-8", "surrogateescape") if packet else None
    if text is not None and _RDF_END.search(text) is None:
        if not strip_gps:
            return packet
        text = None
    if text is None:
        if note is None:
            return None
        text = _PACKET
    # Extended XMP, in JPEG segments of its own, goes with the position it may hold.
    names = [*_STALE, *([_POSITION, "xmpNote:HasExtendedXMP"] if strip_gps else [])]
    text = _without(text, names + ([_PROVENANCE] if strip_provenance else []))
    if note is not None:
        text = _noted(text, note)
    return text.encode("utf-8", "surrogateescape")


def without_padding(packet: bytes) -> bytes:
    """Return the packet less the blanks that editors leave for later editing in place."""
    text = packet.decode("utf-8", "surrogateescape")
    return _PADDING.sub("\n", text).encode("utf-8", "surrogateescape")


def xmp_orientation(packet: bytes | None) -> int:
    """Return tiff:Orientation, 1 if there is none."""
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', packet or b"")
    return int(found[1]) if found else 1


def _noted(text: str, note: EditNote) -> str:
    """Return the packet with an entry in the history and, if it says so, another source type."""
    generated = note.source_type is not None and _is_generated(text)
    if note.source_type is not None and not generated:
        text = _without(text, [_SOURCE_TYPE])
    end = _RDF_END.search(text)
    assert end is not None
    rdf = end[1]
    entry = (
        f'<{rdf}:li xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"'
        f' stEvt:action="edited" stEvt:softwareAgent={_quoted(note.software)}'
        f' stEvt:parameters={_quoted(note.what)} stEvt:changed="/"/>'
    )
    attributes, history = "", ""
    if note.source_type is not None and not generated:
        attributes = (
            ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
            f' {_SOURCE_TYPE}="{_SOURCE_TYPES}{note.source_type}"'
        )
    known = _HISTORY.search(text)
    if known is None:
        history = (
            '<xmpMM:History xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/">'
            f"<{rdf}:Seq>{entry}</{rdf}:Seq></xmpMM:History>"
        )
    else:
        close = text.find(f"</{rdf}:Seq", known.end())
        if 0 <= close < text.find("</xmpMM:History", known.end()):
            text = text[:close] + entry + text[close:]
    if not attributes and not history:
        return text
    end = _RDF_END.search(text)
    assert end is not None
    about = re.search(rf"""{re.escape(rdf)}:about\s*=\s*("[^"]*"|'[^']*')""", text)
    description = (
        f'<{rdf}:Description {rdf}:about={about[1] if about else quoteattr("")}'
        f"{attributes}>{history}</{rdf}:Description>"
    )  # fmt: skip
    return text[: end.start()] + description + text[end.start() :]


def _is_generated(text: str) -> bool:
    """Whether the photo says that a model has made it: an edit does not make it less so."""
    found = re.search(rf"{_SOURCE_TYPE}[^<>]*?[\"'>]{_SOURCE_TYPES}(\w+)", text)
    return found is not None and found[1] == _GENERATED


def _quoted(value: str) -> str:
    return quoteattr(_NO_XML.sub("", value))


def _without(text: str, names: Iterable[str]) -> str:
    """Return the packet less the properties of these names: attributes and elements."""
    any_name = "|".join(f"(?:{name})" for name in names)
    text = re.sub(rf"""\s(?:{any_name})\s*=\s*(?:"[^"]*"|'[^']*')""", " ", text)
    kept, at = [], 0
    unclosed: set[str] = set()
    for opening in re.finditer(rf"<({any_name})(?=[\s/>])[^<>]*>", text):
        name, start, end = opening[1], opening.start(), opening.end()
        if start < at or name in unclosed:
            continue
        if not opening[0].endswith("/>"):
            close = text.find(f"</{name}", end)
            if close < 0:
                unclosed.add(name)
                continue
            end = text.find(">", close) + 1 or len(text)
        kept.append(text[at:start])
        at = end
    return "".join(kept) + text[at:]
