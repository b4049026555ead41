"""V_Rand: which cells a membrane segmentation merges or cuts, whatever the width of its membranes.

The foreground-restricted Rand F-score after border thinning of the ISBI 2012 challenge (Arganda-Carreras et al. 2015,
doi 10.3389/fnana.2015.00142, equation 3 at α = ½). Cells are the 4-connected components of what is no membrane. With
p_ij the pixels that lie in true cell j and found cell i, s_i and t_j its sums over j and i:

    V_Rand = Σ p_ij² / (½ Σ s_i² + ½ Σ t_j²)

Foreground-restricted: only pixels of true cells count. After thinning: a found membrane goes to the nearest found
cell, so that its width is not judged twice (the challenge thins to lines of one pixel by a watershed instead).
"""

from __future__ import annotations

import numpy as np


def cells(is_membrane: np.ndarray) -> np.ndarray:
    """4-connected components of what is no membrane: int32 (h, w), 0 = membrane."""
    from scipy.ndimage import label

    found: np.ndarray = label(~is_membrane)[0]
    return found


def rand_counts(true_cells: np.ndarray, is_membrane: np.ndarray) -> np.ndarray:
    """Σ p_ij², Σ s_i², Σ t_j² of one image: int64 (3,), which add up over images.

    `true_cells` (h, w): cell numbers from 1, 0 where the pixel does not count; `is_membrane` bool (h, w), as found.
    """
    found = _thinned(cells(is_membrane))
    counted = true_cells > 0
    t, s = true_cells[counted].astype(np.int64), found[counted].astype(np.int64)
    # the few pairs of cells that meet, by sorting: in half the time of a sparse matrix
    both = np.unique(s * (int(true_cells.max(initial=0)) + 1) + t, return_counts=True)[1]
    return np.array([_squares(both), _squares(np.bincount(s)), _squares(np.bincount(t))], np.int64)


def v_rand(counts: np.ndarray) -> float:
    """The score of summed :func:`rand_counts`; 0 where there are no true cells."""
    both, found, true = (float(n) for n in counts)
    return 2 * both / (found + true) if found + true else 0.0


def _thinned(found: np.ndarray) -> np.ndarray:
    """Every membrane pixel given to the nearest cell; all of them one cell where there is nothing else."""
    from scipy.ndimage import distance_transform_edt

    membrane = found == 0
    if membrane.all() or not membrane.any():
        return found
    rows, cols = distance_transform_edt(membrane, return_distances=False, return_indices=True)
    thinned: np.ndarray = found[rows, cols]
    return thinned


def _squares(counts: np.ndarray) -> int:
    return int((np.asarray(counts, np.int64) ** 2).sum())
