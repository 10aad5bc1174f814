"""Find test documents that the search has seen in other words: near copies, by word 8-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORDS = 8
"""Words of a shingle; a document of fewer is compared as a whole."""
ALIKE = 0.5
"""Jaccard similarity of two documents' shingles from which on one is a near copy of the other."""
COMMON = 20
"""Shingles of more documents than this are a template's; without them the time is bounded."""
FEATURES = 1 << 22


def near_copies(search: Sequence[str], test: Sequence[str]) -> tuple[list[int], list[int]]:
    """Find the test documents that are copies, or near copies, of some search document.

    Shingles as in Broder 1997, hashed by scikit-learn; every pair that shares one is compared, in
    some seconds for 20,000 documents of 200 words.

    Args:
        search: the texts of the documents that were searched on, case and spaces made alike.
        test: those of the test split.

    Returns:
        places in `test` of exact copies, and of exact and near copies, both ascending.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # a second, only at the end

    seen = set(search)
    exact = [place for place, text in enumerate(test) if text in seen]
    if not search or not test:
        return exact, exact
    # 1. each document's shingles, as 0 and 1 of a sparse matrix (documents, FEATURES)
    shingles = HashingVectorizer(
        ngram_range=(WORDS, WORDS),
        token_pattern=r"(?u)\w+",
        n_features=FEATURES,
        binary=True,
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    ours, theirs = shingles.transform(test), shingles.transform(search)
    # 2. without those of templates
    holders = np.bincount(np.concatenate([ours.indices, theirs.indices]), minlength=FEATURES)
    rare = holders <= COMMON
    for matrix in (ours, theirs):
        matrix.data *= rare[matrix.indices]
        matrix.eliminate_zeros()
    # 3. |A ∩ B| / |A ∪ B| of every pair that shares a shingle
    shared = (ours @ theirs.T).tocoo()
    sizes = ours.getnnz(axis=1)[shared.row] + theirs.getnnz(axis=1)[shared.col]
    alike = shared.data / (sizes - shared.data) >= ALIKE
    return exact, sorted({*exact, *shared.row[alike].tolist()})
