"""Files of a timeline: CSV in BORIS's columns, JSON, WebVTT and ELAN's ``.eaf``. All times are seconds of the recording's clock."""

from __future__ import annotations

import csv
import html
import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from dtsf.files.read import json_text
from dtsf.recordings.bouts import Bout, Timeline

BORIS = ("Observation id", "Subject", "Behavior", "Behavior type", "Start (s)", "Stop (s)", "Duration (s)")
OURS = ("Probability", "Uncertainty")
MIME = {".mp4": "video/mp4", ".mpg": "video/mpeg", ".mov": "video/quicktime"}


def write_csv(timeline: Timeline) -> str:
    """Return the bouts in the columns of BORIS's aggregated events, then probability, uncertainty and the cameras' weights."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow((*BORIS, *OURS, *(f"Weight {view}" for view in timeline.views)))
    for bout in timeline.bouts:
        times = (f"{seconds:.3f}" for seconds in (bout.start, bout.stop, bout.stop - bout.start))
        known = (timeline.recording, timeline.subject or "", bout.label, "STATE")
        numbers = (bout.probability, bout.uncertainty, *bout.view_weights)
        writer.writerow((*known, *times, *(f"{number:.4f}" for number in numbers)))
    return stream.getvalue()


def write_json(timeline: Timeline) -> str:
    """Return the timeline as JSON."""
    return json_text(timeline.model_dump(mode="json", exclude={"pictures"}), indent=1)


def write_vtt(timeline: Timeline) -> str:
    """Return the bouts as cues of WebVTT. The text is the class alone; the name of a cue has its probability."""
    cues = [
        f"{number} ({bout.probability:.0%})\n{_clock(bout.start)} --> {_clock(bout.stop)}\n{html.escape(bout.label, quote=False)}\n"
        for number, bout in enumerate(_after_zero(timeline), 1)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def write_eaf(timeline: Timeline) -> str:
    """Return an annotation document of ELAN: the cameras with their offsets, and one tier with the bouts."""
    root = ET.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "dtsf",
            "DATE": datetime.now(UTC).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = ET.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    # An origin is the second of a file at zero of the recording: below 0 for a camera or a chapter that began later. A pipe or an
    # address has no file.
    for file in (file for one in timeline.media for file in one.files):
        origin = round(-1000 * file.start)
        path = Path(file.path)
        place = {"MEDIA_URL": path.absolute().as_uri(), "MIME_TYPE": MIME.get(path.suffix.lower(), "video/*")}
        ET.SubElement(header, "MEDIA_DESCRIPTOR", place | ({"TIME_ORIGIN": str(origin)} if origin else {}))
    order = ET.SubElement(root, "TIME_ORDER")
    tier = ET.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": "default-lt", "TIER_ID": "dtsf"})
    for number, bout in enumerate(_after_zero(timeline), 1):
        slots = [f"ts{2 * number - 1}", f"ts{2 * number}"]
        for slot, seconds in zip(slots, (bout.start, bout.stop), strict=True):
            ET.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(round(1000 * seconds))})
        names = {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]}
        annotation = ET.SubElement(ET.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", names)
        ET.SubElement(annotation, "ANNOTATION_VALUE").text = bout.label
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    ET.SubElement(root, "LINGUISTIC_TYPE", kind)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


WRITERS: dict[str, Callable[[Timeline], str]] = {}
WRITERS |= {"csv": write_csv, "json": write_json, "vtt": write_vtt, "eaf": write_eaf}


def _after_zero(timeline: Timeline) -> Iterator[Bout]:
    """Yield the bouts from zero on: captions and ELAN have no time before it, which a camera that began early may have filmed."""
    for bout in timeline.bouts:
        if bout.stop > 0:
            yield bout.model_copy(update={"start": max(0.0, bout.start)})


def _clock(seconds: float) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
