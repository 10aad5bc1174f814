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


def fisher(taus, fishers, weight, floor):
    """Weights of absolute models, each expert's Fisher by the root of its mean square."""
    sizes = [np.sqrt(np.mean(f**2)) for f in fishers]
    shares = [w * (f / size + floor) for w, f, size in zip(weight, fishers, sizes, strict=True)]
    return sum(s * t for s, t in zip(shares, taus, strict=True)) / sum(shares)


def regmean(taus, grams, reduce):
    shrunk = [reduce * g + (1 - reduce) * np.diag(np.diag(g)) for g in grams]
    pulled = sum(tau @ gram for tau, gram in zip(taus, shrunk, strict=True))
    return pulled @ np.linalg.inv(sum(shrunk))


def pleas(taus, crossed, ridge):
    """Towards the mean, with a penalty that grows from 0 to everything."""
    total, middle = sum(crossed), taus.mean(0)
    held = ridge * np.trace(total) / len(total) * np.eye(len(total))
    pulled = sum(tau @ cross for tau, cross in zip(taus, crossed, strict=True))
    return ((1 - ridge) * pulled + middle @ held) @ np.linalg.inv((1 - ridge) * total + held)


def saliency_mask(tau, fisher, density):
    """The entries of largest F τ², of equal ones the first."""
    saliency = (fisher * tau**2).ravel()
    kept = np.zeros(tau.size, dtype=bool)
    kept[np.argsort(-saliency, kind="stable")[: max(1, int(density * tau.size))]] = True
    return kept.reshape(tau.shape)


def ota(taus, fishers, density, power):
    largest = max(np.sqrt(np.mean(f**2)) for f in fishers)
    total, divisor = np.zeros_like(taus[0]), np.zeros_like(taus[0])
    for tau, fisher, share in zip(taus, fishers, density, strict=True):
        weight = ((fisher / largest) ** power + 1e-6) * saliency_mask(tau, fisher, share)
        total, divisor = total + weight * tau, divisor + weight
    return total / np.where(divisor > 0, divisor, 1)


def rcp(taus, samples, penalty, scale):
    reasoning, domain = taus
    fisher = np.mean(samples[0] ** 2, axis=0)
    penalised = samples[1] + penalty * fisher * (reasoning - domain) ** 2
    votes = np.where(penalised <= 0, 1, -1).sum(0)
    return reasoning + scale * np.where(votes > 0, domain, 0)


def balanced_task_arithmetic(taus, weight, length):
    norms = [np.linalg.norm(tau) for tau in taus]
    common = length or np.mean(norms)
    return sum(w * common / n * t for w, n, t in zip(weight, norms, taus, strict=True))


def doge_operator(taus):
    """The dense system of DOGE's correction: rows ⟨τⱼ, QZ⟩ of a flattened Z, and Q."""
    rank, (out, width) = min(taus[0].shape), taus[0].shape
    each = rank // len(taus)
    sides = np.hstack([np.linalg.svd(tau, full_matrices=False)[0][:, :each] for tau in taus])
    shared = np.linalg.svd(sides, full_matrices=False)[0][:, : rank // 6]
    outside = np.eye(out) - shared @ shared.T
    rows = np.zeros((len(taus) * out, out, width))
    for j, tau in enumerate(taus):
        for a in range(out):
            rows[j * out + a, a] = tau[a]
    return (rows.transpose(0, 2, 1) @ outside).transpose(0, 2, 1).reshape(len(rows), -1), outside


def doge_correction(taus, eta):
    system, outside = doge_operator(taus)
    factors = [eta / np.linalg.norm(tau) for tau in taus]
    merged = sum(f * t for f, t in zip(factors, taus, strict=True))
    side = np.concatenate([(tau * (tau - merged)).sum(1) for tau in taus])
    least = np.linalg.lstsq(system * sum(factors), side, rcond=1e-12)[0]
    return outside @ least.reshape(taus[0].shape)


def doge(taus, eta, density):
    change = doge_correction(taus, eta)
    return sum(
        eta / np.linalg.norm(tau) * saliency_mask(tau, np.ones_like(tau), share) * (tau + change)
        for tau, share in zip(taus, density, strict=True)
    )


def swudi_system(taus):
    sizes = [np.sum(tau**2) for tau in taus]
    inputs = sum(tau.T @ tau / size for tau, size in zip(taus, sizes, strict=True))
    pulled = sum(tau @ tau.T @ tau / size for tau, size in zip(taus, sizes, strict=True))
    return inputs, pulled


def filtered(taus, start, weigh):
    """From a start, with eigenvectors in the order of falling eigenvalues."""
    inputs, pulled = swudi_system(taus)
    values, vectors = np.linalg.eigh(inputs)
    values, vectors = values[::-1], vectors[:, ::-1]
    there = values > 1e-12 * values[0]
    factors = np.where(there, weigh(values), 0)
    solved = pulled @ vectors @ np.diag(factors / np.where(there, values, 1)) @ vectors.T
    begin = {"sum": taus.sum(0), "mean": taus.mean(0), "none": 0 * taus[0]}[start]
    return begin - begin @ vectors @ np.diag(factors) @ vectors.T + solved


def swudi(taus, share, log_time, start):
    def weigh(values):
        kept = np.arange(len(values)) < np.ceil(share * len(values))
        return kept * (1 - np.exp(-values * 10**log_time))

    return filtered(taus, start, weigh)


def aswudi(taus, rule, start):
    def weigh(values):
        roots = np.sqrt(values[values > 1e-12 * values[0]])
        if rule == "participation":
            count = np.ceil(roots.sum() ** 2 / (roots**2).sum())
        else:
            beta = min(taus[0].shape) / max(taus[0].shape)
            omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
            middle = np.sort(roots)[(len(roots) - 1) // 2]
            count = max(1, (roots > omega * middle).sum())
        return np.arange(len(values)) < count

    return filtered(taus, start, weigh)
