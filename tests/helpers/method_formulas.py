"""Methods without an oracle, written again from the papers' formulas: numpy, float64, no tricks.

Each takes task vectors (experts, …) and returns the merged task vector at λ = 1.
"""

from __future__ import annotations

import numpy as np


def polar(matrix):
    """Nearest orthogonal matrix of a matrix of full rank."""
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def tsvm(taus):
    if taus[0].ndim == 1:
        return taus.mean(0)
    k = min(taus[0].shape) // len(taus)
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    u = np.hstack([u[:, :k] for u, _, _ in parts])
    s = np.concatenate([s[:k] for _, s, _ in parts])
    vh = np.vstack([vh[:k] for _, _, vh in parts])
    return polar(u) @ np.diag(s) @ polar(vh)


def iso_c(taus):
    if taus[0].ndim == 1:
        return taus.mean(0)
    u, s, vh = np.linalg.svd(taus.sum(0), full_matrices=False)
    return s.mean() * u @ vh


def iso_cts(taus, common):
    """As in the authors' code: the common share is rounded so that tasks share the rest equally."""
    if taus[0].ndim == 1:
        return taus.mean(0)
    rank, n = min(taus[0].shape), len(taus)
    own = round((rank - int(rank * common)) / n)
    k = rank - own * n
    u, s, vh = np.linalg.svd(taus.sum(0), full_matrices=False)
    us, ss, vs = [], [], []
    for tau in taus:
        rest = np.linalg.svd(tau - u[:, :k] @ u[:, :k].T @ tau, full_matrices=False)
        us.append(rest[0][:, :own])
        ss.append(rest[1][:own])
        vs.append(rest[2][:own])
    level = np.concatenate([*ss, s[:k]]).mean()
    return level * polar(np.hstack([*us, u[:, :k]])) @ polar(np.vstack([*vs, vh[:k]]))


def wudi_loss(merged, taus):
    return sum(np.sum(((merged - t) @ t.T) ** 2) / np.sum(t**2) for t in taus)


def opcm(taus, alpha):
    """Entry by entry: in the full singular basis the diagonal and the leading block go."""
    merged = taus[0]
    for tau in taus[1:]:
        if tau.ndim == 1:
            merged = merged + tau
            continue
        u, s, vh = np.linalg.svd(merged)
        seen = u.T @ tau @ vh.T
        split = int(np.argmax(np.cumsum(s) / s.sum() > alpha))
        for i in range(seen.shape[0]):
            for j in range(seen.shape[1]):
                if i == j or (i < split and j < split):
                    seen[i, j] = 0.0
        merged = merged + u @ seen @ vh
    return merged * np.mean([np.linalg.norm(t) for t in taus]) / np.linalg.norm(merged)


def twin(taus, weight, shared, rank):
    delta = shared * taus.sum(0)
    total = delta.copy()
    for w, tau in zip(weight, taus, strict=True):
        rest = tau - delta
        if rest.ndim > 1:
            u, s, vh = np.linalg.svd(rest, full_matrices=False)
            s[max(1, int(rank * len(s))) :] = 0
            rest = u @ np.diag(s) @ vh
        total += w * rest
    return total


def magmax(taus):
    place = np.abs(taus).argmax(0)
    return np.take_along_axis(taus, place[None], 0)[0]


def consensus(taus, threshold, agree):
    total = taus.sum(0)
    votes = sum(np.abs(t) > lam * np.abs(total - t) for t, lam in zip(taus, threshold, strict=True))
    return np.where(votes >= agree, total, 0.0)


def localize_and_stitch(taus, density):
    masks = []
    for tau, share in zip(taus, density, strict=True):
        bound = np.sort(np.abs(tau).ravel())[-max(1, int(share * tau.size))]
        masks.append(np.abs(tau) >= bound)
    masks = np.array(masks)
    return (masks * taus).sum(0) / np.maximum(masks.sum(0), 1)


def varm(taus):
    energy = np.array([np.mean(t**2) for t in taus])
    return np.tensordot(energy / energy.sum(), taus, 1)


def pcb(taus, density):
    flat = taus.reshape(len(taus), -1)
    n, d = flat.shape

    def clipped(x, low, high):
        ordered = np.sort(x, axis=1)
        least, greatest = ordered[:, int(d * low)], ordered[:, int(d * (1 - high) - 1)]
        return np.clip(x, least[:, None], greatest[:, None])

    def unit(x):
        least, greatest = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - least) / (greatest - least)

    size = clipped(np.abs(flat), 1e-4, 1e-4)
    beta = np.exp(n * unit(size) ** 2) * np.tanh(flat * flat.sum(0))
    drive = unit(clipped(beta, 1 - density, 0))
    merged = (np.sign(flat) * size * drive).sum(0) / np.maximum(drive.sum(0), 1e-12)
    return merged.reshape(taus[0].shape)


def widen(base, taus, ratio, calibration):
    def scores(values):
        shares = np.exp(values) / np.exp(values).sum(0)
        shares[values > values.mean(1, keepdims=True) * ratio] = calibration
        return shares

    if base.ndim == 1:
        return (scores(np.abs(taus)) * taus).sum(0)
    columns = base.shape[1]
    found = []
    for kind in ("magnitude", "direction"):
        ranks = np.empty((len(taus), columns))
        for i, tau in enumerate(taus):
            moved = np.empty(columns)
            for c in range(columns):
                old, new = base[:, c], base[:, c] + tau[:, c]
                a, b = np.linalg.norm(old), np.linalg.norm(new)
                moved[c] = abs(b - a) if kind == "magnitude" else 1 - old @ new / (a * b)
            ranks[i, np.argsort(moved, kind="stable")] = np.arange(columns) / columns
        found.append(scores(ranks))
    return ((found[0] + found[1])[:, None, :] / 2 * taus).sum(0)
