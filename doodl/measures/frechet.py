"""The Fréchet distance of two sets of feature vectors, each taken for a Gaussian."""

from __future__ import annotations

import numpy as np


def gaussian_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (D,) and covariance (D, D) of features (N, D), N at least 2."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features have shape {features.shape}; they must be (N, D), N at least 2."
        )
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape((features.shape[1],) * 2)


def gaussian_distance(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> float:
    """Return the squared Fréchet distance of two Gaussians, each (mean, covariance).

        |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½)

    The inner matrix is symmetric, so its eigenvalues do where a general matrix root would stray
    into complex numbers: covariances of fewer samples than dimensions are singular.
    Source: Dowson, Landau, J. Multivariate Analysis 12 (1982); FID, arXiv:1706.08500, eq. 6.
    """
    (mean_1, cov_1), (mean_2, cov_2) = first, second
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(_without_rounding(values))) @ vectors.T
    inner = _without_rounding(np.linalg.eigvalsh(root @ cov_2 @ root))
    traces = np.trace(cov_1) + np.trace(cov_2) - 2 * np.sqrt(inner).sum()
    return float(np.square(mean_1 - mean_2).sum() + traces)


def _without_rounding(eigenvalues: np.ndarray) -> np.ndarray:
    """Return the eigenvalues with those that are only rounding set to 0.

    A root swells them: 1e-16 would count for 1e-8, in every dimension that samples do not fill.
    """
    least = len(eigenvalues) * np.finfo(np.float64).eps * abs(eigenvalues[-1])
    return np.where(eigenvalues > least, eigenvalues, 0.0)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of two sets of features (N, D).

    It is biased upward, the more the fewer samples: compare only distances of equal N.
    """
    return gaussian_distance(gaussian_of(first), gaussian_of(second))
