"""Lines and tables of an evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from dtsf.cli.screen import CLASSES_SHOWN, Lines, styled, table
from dtsf.names import counted


def evaluation_lines(document: dict[str, Any]) -> Lines:
    """Yield the lines and tables of an evaluation."""
    auroc, unknown = document["auroc_uncertainty"], document["unknown"]
    yield styled(
        ("top-1 ", "bold"),
        (f"{document['top1']:.3f}", "bold green"),
        f"  top-5 {document['top5']:.3f}  on {document['n_groups']} groups ({document['n_clips']} clips) of "
        f"{document['dataset']}: {document['task']}"
        + (f"; mean of {document['draws']} draws of frames" if document["draws"] > 1 else "")
        + ("; adapted to the test clips" if document["adapted"] else ""),
    )
    of_errors = f"; AUROC of uncertainty for errors {auroc:.2f}" if auroc is not None else ""
    yield styled(f"calibration error {document['ece']:.3f}; mean uncertainty {document['uncertainty']:.3f}{of_errors}")
    if unknown:
        yield styled(
            f"unknown actions ({unknown['n_groups']} groups: {unknown['description']}): AUROC {unknown['auroc']:.2f}, "
            f"FPR at 95 % TPR {unknown['fpr95']:.2f}, mean uncertainty {unknown['uncertainty']:.3f}"
        )
    yield from map(styled, _promise_lines(document.get("sets", []), document.get("surest", [])))
    missing = [f"{counted(n, 'clip')} {reason}" for reason, n in document["left_out"].items()]
    missing += [f"{counted(n, 'group')} {reason}" for reason, n in document["groups_left_out"].items()]
    if missing:
        yield styled((f"not in these numbers: {', '.join(missing)}", "yellow"))
    yield from (styled((f"note: {note}", "yellow")) for note in document["notes"])
    all_views = zip(document["view_names"], document["view_weights"], document["view_top1"], strict=True)
    rows: list[tuple[object, ...]] = [
        (name, f"{weight:.3f}", "-" if top1 is None else f"{top1:.3f}")
        for name, weight, top1 in all_views
        if name in document["views"]
    ]
    yield styled("")
    yield table("", ("view", "mean weight", "top-1 of its own feature"), rows)
    classes, row_of = list(document["per_class"].items()), defaultdict[int, dict[int, int]](dict)
    for true, found, count in document["confusion_cells"]:
        row_of[true][found] = count
    tested = [(recall, k, name) for k, (name, recall) in enumerate(classes) if k in row_of]
    # With many classes, only those of lowest recall: the numbers above must stay visible.
    many, rows = len(tested) > CLASSES_SHOWN, []
    for recall, k, name in sorted(tested)[:CLASSES_SHOWN] if many else tested:
        wrong = [(count, classes[j][0]) for j, count in row_of[k].items() if j != k]
        most = max(wrong, default=None)
        rows.append((name, f"{recall:.3f}", sum(row_of[k].values()), f"{most[1]} ({most[0]})" if most else ""))
    yield styled("")
    title = f"the {CLASSES_SHOWN} classes of lowest recall, of {len(tested)}" if many else ""
    yield table(title, ("class", "recall", "groups", "most frequent wrong answer"), rows)
    if document["probes"]:
        yield from _probe_lines(document["probes"])


def _probe_lines(probes: dict[str, Any]) -> Lines:
    """Yield a table of the changed inputs and a table of the static shares, with what cannot be measured."""
    rows: list[tuple[object, ...]] = []
    for one in probes["inputs"]:
        if one["why_not"]:
            continue
        usual = one["usual_change"]
        numbers = (f"{one[name]:.3f}" for name in ("top1", "top1_unchanged", "changed"))
        rows.append((one["name"], *numbers, one["n_groups"], f"{usual[0]} -> {usual[1]} ({usual[2]})" if usual else ""))
    columns = ("changed input", "top-1", "before", "answers changed", "groups", "most frequent change")
    yield styled("")
    yield table("", columns, rows)
    names = ("static", "dynamic", "residual", "keeps_shuffled", "keeps_background")
    shares = [
        (one["feature"], *("-" if one[name] is None else f"{one[name]:.2f}" for name in names))
        for one in probes["static_shares"]
    ]
    if shares:
        yield styled("")
        yield table("", ("feature", *names[:3], "same in random order", "same, other background"), shares)
    missing = [f"{one['name']}: {one['why_not']}" for one in probes["inputs"] if one["why_not"]]
    missing += [f"static shares: {probes['why_not']}"] if probes["why_not"] else []
    yield from (styled((f"not measured: {why}", "yellow")) for why in missing)


def _promise_lines(sets: list[dict[str, Any]], surest: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what the held-out answers promise of sets and of the surest share, beside what these groups show."""
    for row in sets:
        on = f"{row['n_held_out']} held-out performances" + (f" of {row['n_people']} people" if row["n_people"] else "")
        for_whom = ", promised for new people" if row["by"] == "people" else ""
        worst = f", worst person {row['worst_subject']} {row['worst_coverage']:.2f}" if row["worst_subject"] else ""
        yield (
            f"sets of {100 * row['level']:g} % ({on}{for_whom}): coverage {row['coverage']:.3f}, "
            f"{row['mean_size']:.2f} classes{worst}"
        )
    if surest:
        shares, held_out, evaluated = (
            " / ".join(f"{100 * row[name]:.0f}" for row in surest) for name in ("share", "held_out", "evaluated")
        )
        yield f"the surest {shares} % were right in {evaluated} % (of the held-out performances, {held_out} %)"
