"""ROC and precision-recall curves of a few hundred points each, under which the area is that of all points.

Knows arrays; never labels or figures.
"""

from __future__ import annotations

import numpy as np

POINTS = 400  # of a drawn curve: two per screen pixel of a phone


def roc_points(truth: np.ndarray, scores: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """((K,) false positive rate, (K,) true positive rate), both rising from 0 to 1; K at most `points`.

    truth: (N,) bool with both sides. The area by the trapezoid rule is that of the full curve.
    """
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, scores, drop_intermediate=True)
    return thin_rising(false, true, points)


def thin_rising(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve that rises in x and y through fewer points, with the same area under straight lines.

    Kept points lie evenly along the way; between two of them stands one more, on the diagonal of their rectangle:

        y1 +-------* kept       the full curve between two kept points has some area above or below the straight line;
           | o   ./             a corner `o` at s of the way from the middle to the upper left has the triangle's
           |  . /               area s/2 of the rectangle, so s gives it back, and |s| <= 1 keeps the curve rising
        y0 *----+
    """
    if len(x) <= points:
        return x, y
    way = x + y
    kept = np.unique(np.searchsorted(way, np.linspace(way[0], way[-1], points // 2)))
    kept = np.unique(np.concatenate([[0], kept, [len(x) - 1]]))
    areas = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
    x0, x1, y0, y1 = x[kept[:-1]], x[kept[1:]], y[kept[:-1]], y[kept[1:]]
    rectangle = (x1 - x0) * (y1 - y0)
    missing = np.diff(areas[kept]) - (x1 - x0) * (y0 + y1) / 2
    s = np.divide(2 * missing, rectangle, out=np.zeros_like(missing), where=rectangle > 0).clip(-1, 1)
    corner_x = (x0 + x1) / 2 - s * (x1 - x0) / 2
    corner_y = (y0 + y1) / 2 + s * (y1 - y0) / 2
    bent = rectangle > 0
    order = np.argsort(np.concatenate([kept, kept[:-1][bent] + 0.5]))
    return np.concatenate([x[kept], corner_x[bent]])[order], np.concatenate([y[kept], corner_y[bent]])[order]


def precision_recall_points(
    truth: np.ndarray, scores: np.ndarray, points: int = POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """((K,) recall rising from 0, (K,) precision): precision k holds from recall k - 1 to recall k, a step.

    The area under the steps is the average precision of all rows: where steps are joined, the new one has their mean.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # rising recall, without scikit-learn's added point (0, 1)
    width = np.diff(recall, prepend=0.0)
    precision, recall, width = precision[width > 0], recall[width > 0], width[width > 0]
    if len(recall) >= points:
        # Joined by equal count of rows near the start, where the curve jumps, and by equal recall after it.
        edges = np.concatenate([np.arange(points // 4), np.searchsorted(recall, np.linspace(0, 1, points * 3 // 4))])
        starts = np.unique(np.clip(edges, 0, len(recall) - 1))
        precision = np.add.reduceat(precision * width, starts) / np.add.reduceat(width, starts)
        recall = recall[np.append(starts[1:], len(recall)) - 1]
    return np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
