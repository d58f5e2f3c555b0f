"""What a delivered photo says of its edit, and what it no longer says."""

import io
import struct
import zlib
from xml.etree import ElementTree

import pytest
from PIL import Image

from doodl.images import decode_photo, encode_photo
from doodl.images.encode import GENERATED
from doodl.images.xmp import EditNote, edit_xmp
from tests.doodl.photo_files import XMP, exif_block, picture, save

RGB = Image.fromarray(picture())
NOTE = EditNote("doodl-batch 1", "aesthetic score up", "compositeWithTrainedAlgorithmicMedia")
NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
}
EVENT = "{http://ns.adobe.com/xap/1.0/sType/ResourceEvent#}"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def parsed(packet: bytes | None) -> ElementTree.Element:
    assert packet is not None
    text = packet.decode()
    end = "</x:xmpmeta>"
    return ElementTree.fromstring(text[text.index("<x:xmpmeta") : text.index(end) + len(end)])


def properties(packet: bytes | None) -> list[tuple[str, str]]:
    """Return every top-level property as a parser sees it; ParseError if it is no XML."""
    found = []
    for description in parsed(packet).iterfind("rdf:RDF/rdf:Description", NAMESPACES):
        found += [(k, v) for k, v in description.attrib.items() if not k.endswith("about")]
        found += [(child.tag, (child.text or "").strip()) for child in description]
    return found


def history(packet: bytes | None) -> list[dict[str, str]]:
    entries = parsed(packet).iterfind(".//xmpMM:History/rdf:Seq/rdf:li", NAMESPACES)
    return [{k.removeprefix(EVENT): v for k, v in entry.attrib.items()} for entry in entries]


def packet(inside: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x='
        '"adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
        f"{' ' * 2000}<?xpacket end='w'?>"
    ).encode()


def test_an_edit_is_one_more_entry_of_the_history_and_the_source_type_is_told_once() -> None:
    once = edit_xmp(XMP, NOTE)
    twice = edit_xmp(once, NOTE)
    entry = {"action": "edited", "softwareAgent": "doodl-batch 1",
             "parameters": "aesthetic score up", "changed": "/"}  # fmt: skip
    assert history(once) == [entry]
    assert history(twice) == [entry, entry]
    for edited in (once, twice):
        names = [name for name, _ in properties(edited)]
        assert len(names) == len(set(names))  # XMP readers refuse a packet that says a thing twice
        assert dict(properties(edited))[SOURCE_TYPE].endswith(
            "/compositeWithTrainedAlgorithmicMedia"
        )
    assert set(properties(XMP)) < set(properties(once))


@pytest.mark.parametrize(
    "form",
    [
        ' Iptc4xmpExt:DigitalSourceType="{}">',
        "><Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>",
        "><Iptc4xmpExt:DigitalSourceType rdf:resource='{}'/>",
    ],
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("digitalCapture", "compositeWithTrainedAlgorithmicMedia"),
        ("trainedAlgorithmicMedia", "trainedAlgorithmicMedia"),
    ],
)
def test_the_source_type_of_a_camera_gives_way_and_that_of_a_model_stays(
    form: str, before: str, after: str
) -> None:
    uri = "http://cv.iptc.org/newscodes/digitalsourcetype/"
    declared = 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    edited = edit_xmp(packet(declared + form.format(uri + before)), NOTE)
    assert edited is not None
    assert edited.count(uri.encode()) == 1
    assert (uri + after).encode() in edited
    properties(edited)


def test_what_speaks_of_parts_that_are_gone_goes_with_them() -> None:
    source = packet(
        'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
        ' xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1"'
        ' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"'
        ' xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="self#jumbf=/c2pa/x">'
        "<Container:Directory><rdf:Seq><rdf:li>gain map</rdf:li></rdf:Seq></Container:Directory>"
        "<xmp:Thumbnails><rdf:Alt><rdf:li>old</rdf:li></rdf:Alt></xmp:Thumbnails>"
    )
    edited = edit_xmp(source, None, strip_provenance=True)
    assert properties(edited) == [("{http://ns.adobe.com/xap/1.0/}Rating", "5")]
    assert b"provenance" in (edit_xmp(source, None) or b"")


def test_positions_are_stripped_in_every_spelling() -> None:
    source = packet(
        'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSAltitude="12/1"'
        ' xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" drone-dji:GpsLatitude="48.85"'
        ' drone-dji:GpsLongtitude="2.29" drone-dji:FlightRollDegree="1"'
        ' xmlns:Camera="http://pix4d.com/camera/1.0" Camera:GPSXYAccuracy="2">'
        "<exif:GPSLatitude>48,51.5N</exif:GPSLatitude><exif:GPSMapDatum/>"
    )
    edited = edit_xmp(source, None, strip_gps=True)
    assert properties(edited) == [("{http://www.dji.com/drone-dji/1.0/}FlightRollDegree", "1")]


def test_a_packet_that_is_no_xml_is_kept_unless_a_position_must_go() -> None:
    odd = XMP.decode().encode("utf-16")
    assert edit_xmp(odd, NOTE) == odd
    assert edit_xmp(odd, None, strip_gps=True) is None
    assert len(history(edit_xmp(odd, NOTE, strip_gps=True))) == 1


@pytest.mark.parametrize(
    "unit", [" ", "<a:GPSx>", "<a:GPS", ' a:GPSx="', "a:gps", "<xmpMM:History>", "rdf:about="]
)
@pytest.mark.timeout(120)
def test_a_hostile_packet_is_not_quadratic(unit: str) -> None:
    """At 2 MB a pattern that tries every pair of places would run for hours."""
    hostile = packet(">" + unit * (2_000_000 // len(unit)))
    assert edit_xmp(hostile, NOTE, strip_gps=True, strip_provenance=True) is not None


def test_control_characters_in_a_note_leave_the_packet_well_formed() -> None:
    note = EditNote("doodl\x00", 'a "b" <c> & \x1b[0m \ud800', None)
    assert history(edit_xmp(None, note))[0]["parameters"] == 'a "b" <c> & [0m '


def test_a_generated_photo_says_so() -> None:
    photo = decode_photo(save(RGB, "PNG"))
    delivered = decode_photo(encode_photo(photo, photo.pixels, source_type=GENERATED))
    assert dict(properties(delivered.xmp))[SOURCE_TYPE].endswith("/trainedAlgorithmicMedia")
    assert history(delivered.xmp)[0]["parameters"] == "generated"


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _signed(kind: str) -> bytes:
    jumbf = b"JP\0\1\0\0\0\1" + b"\0\0\0\x30jumb" + b"\0\0\0\x20jumdc2pa" + bytes(24)
    plain = save(RGB, kind)
    if kind == "JPEG":
        return plain[:2] + _segment(0xEB, jumbf) + _segment(0xE2, b"MPF\0" + bytes(30)) + plain[2:]
    at = plain.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(jumbf)) + b"caBX" + jumbf
    return plain[:at] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + plain[at:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_manifest_that_the_edit_invalidates_is_dropped_and_noted(kind: str) -> None:
    photo = decode_photo(_signed(kind))
    assert "Content Credentials (C2PA)" in photo.dropped
    delivered = encode_photo(photo, photo.pixels)
    assert b"jumb" not in delivered
    (entry,) = history(decode_photo(delivered).xmp)
    assert "not carried over: Content Credentials (C2PA)" in entry["parameters"]
    if kind == "JPEG":
        assert "further pictures" in entry["parameters"]
        assert decode_photo(delivered).dropped == ()


def test_strip_gps_reaches_the_copies_of_xmp_that_photoshop_keeps() -> None:
    copy = b"8BIM\x04\x24\0\0" + struct.pack(">I", len(XMP)) + XMP + b"\0" * (len(XMP) % 2)
    iptc = b"8BIM\x04\x04\0\0" + struct.pack(">I", 6) + b"\x1c\x02\x05\0\x01A"
    plain = save(RGB, "JPEG", exif=b"Exif\0\0" + exif_block())
    extended = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + XMP
    data = (
        plain[:2]
        + _segment(0xED, b"Photoshop 3.0\0" + copy + iptc)
        + _segment(0xE1, extended)
        + plain[2:]
    )
    photo = decode_photo(data)
    kept = encode_photo(photo, photo.pixels)
    assert kept.count(b"48,51.5N") == 2
    stripped = encode_photo(photo, photo.pixels, strip_gps=True)
    assert b"48,51.5N" not in stripped
    assert iptc in stripped


def test_an_edit_of_the_same_photo_gives_the_same_bytes() -> None:
    photo = decode_photo(save(RGB, "JPEG", xmp=XMP, exif=b"Exif\0\0" + exif_block()))
    assert encode_photo(photo, photo.pixels) == encode_photo(photo, photo.pixels)
    assert Image.open(io.BytesIO(encode_photo(photo, photo.pixels))).size == (96, 64)
