"""Exploratory figures of labelled texts: labels, lengths by label, repeats, and the words that stand with a label.

Knows labelled rows; never files or HTML.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from infer.report import ExtraTable
from infer.report.figure_page import Figure, FigurePage
from train.explore_numbers import boxes, by_equal_bins, length_histogram, writing_systems
from train.rows import LabelledRows

WORDS_SHOWN = 12
REPEATS_SHOWN = 20
LABELS_DRAWN = 8  # a line each
TEXT_SHOWN = 120


def texts_page(title: str, source: str, rows: LabelledRows) -> FigurePage:
    """The page of a table of labelled texts."""
    texts = ["\n".join(row.fields.values()) for row in rows.rows]
    names, truth = list(rows.labels), rows.truth
    lengths = np.array([len(text) for text in texts])
    counts = np.bincount(rows.label_index, minlength=len(names))
    common = [int(at) for at in np.argsort(-counts, kind="stable")[:LABELS_DRAWN]]
    drawn = [names[at] for at in sorted(common)]
    middles, histogram = length_histogram({name: lengths[truth == name] for name in drawn})
    binned, means, in_bin = by_equal_bins(lengths, rows.targets[:, sorted(common)].astype(float))
    figures = [
        Figure(
            "labels", "Labels", "Share of rows.", "bars", names, {"share": (counts / counts.sum()).tolist()},
            share=True, rows=counts.tolist(),
        ),
        Figure(
            "lengths", "Lengths", "Rows by characters.", "lines", middles, histogram, "characters", "rows", log=True
        ),
        Figure(
            "lengths_by_label", "Lengths by label", "Middle half of the rows, median, 5 % and 95 %.", "boxes", names,
            {"characters": boxes(lengths, truth, names)}, y_title="characters",
        ),
        Figure(
            "labels_by_length", "Labels by length", "Does the length alone tell? Bins of equal count.", "lines", binned,
            dict(zip(drawn, means.T.tolist(), strict=True)), "characters", "share of rows", share=True, log=True,
            rows=in_bin,
        ),
    ]  # fmt: skip
    repeated, conflicting = repeats(rows)
    soft = (rows.targets.max(axis=1) < 1).mean()
    tiles = [
        ("rows", f"{len(rows):,}", f"{len(names)} labels"),
        ("commonest label", f"{counts.max() / counts.sum():.1%}", names[int(counts.argmax())]),
        ("rarest label", f"{counts.min():,}", f"rows are {names[int(counts.argmin())]}"),
        ("median length", f"{np.median(lengths):,.0f}", f"characters; longest {lengths.max():,}"),
        ("repeated texts", f"{repeated:,}", f"{conflicting} of them with another label"),
    ]
    if soft:
        tiles.append(("shared labels", f"{soft:.1%}", "of rows are of several labels in part"))
    tables = [
        ExtraTable(
            "Words that stand with a label", "By log-odds against the other labels, with the whole table as the prior.",
            telling_words(texts, rows),
        ),
        ExtraTable("Repeated texts", "Equal but for case and blanks; they share a fold.", _repeated(rows, texts)),
        ExtraTable("Writing systems", "Of most letters of the text.", writing_systems(texts)),
    ]  # fmt: skip
    summary = f"{len(rows):,} texts with {len(names)} labels from {source}. Nothing has been trained."
    return FigurePage(title, summary, figures, tables, tiles)


def repeats(rows: LabelledRows) -> tuple[int, int]:
    """(rows whose text occurred before, those of them with another label than its first)."""
    first: dict[int, int] = {}
    repeated = conflicting = 0
    for group, label in zip(rows.groups.tolist(), rows.label_index.tolist(), strict=True):
        if group in first:
            repeated += 1
            conflicting += first[group] != label
        else:
            first[group] = label
    return repeated, conflicting


def telling_words(texts: list[str], rows: LabelledRows, shown: int = WORDS_SHOWN) -> list[dict[str, str]]:
    """Per label the words with the highest z-score of their log-odds against all other labels.

    Source: Monroe, Colaresi and Quinn 2008, section 3.5.1, the prior being the words of all texts.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w\w+\b", min_df=2 if len(texts) > 20 else 1)
        counts = vectorizer.fit_transform(texts)  # (N, W)
    except ValueError:  # no word at all
        return []
    words = vectorizer.get_feature_names_out()
    if len(words) < 2:  # the odds of a word against all others: there are none
        return []
    of_label = np.stack([
        np.asarray(counts[rows.label_index == at].sum(axis=0)).ravel() for at in range(len(rows.labels))
    ]).astype(float)  # fmt: skip
    prior = of_label.sum(axis=0)  # alpha_w
    total = prior.sum()
    found = []
    for at, label in enumerate(rows.labels):
        mine, others = of_label[at] + prior, prior - of_label[at] + prior  # y_w + alpha_w, here and elsewhere
        odds = np.log(mine / (of_label[at].sum() + total - mine))
        elsewhere = np.log(others / (2 * total - of_label[at].sum() - others))
        z = (odds - elsewhere) / np.sqrt(1 / mine + 1 / others)
        best = [int(word) for word in np.argsort(-z, kind="stable")[:shown] if z[word] > 0]
        found.append({"label": label, "words": ", ".join(str(words[word]) for word in best)})
    return found


def _repeated(rows: LabelledRows, texts: list[str]) -> list[dict[str, object]]:
    """The texts that stand most often, with how often and by which labels."""
    found = []
    for group, count in Counter(rows.groups.tolist()).most_common(REPEATS_SHOWN):
        if count < 2:
            break
        mine = np.flatnonzero(rows.groups == group)
        text = " ".join(texts[mine[0]].split())
        labels = ", ".join(f"{label} {times}" for label, times in Counter(rows.truth[mine]).most_common())
        shown = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."
        found.append({"text": shown, "rows": count, "labels": labels})
    return found
