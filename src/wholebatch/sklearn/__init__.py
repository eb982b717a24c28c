"""``MLPClassifier`` and ``MLPRegressor`` with scikit-learn's interface, on this library's engine: change one import."""

from wholebatch.sklearn.classifier import MLPClassifier
from wholebatch.sklearn.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
