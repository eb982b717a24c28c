"""scikit-learn's own checks of an estimator, all of them, none expected to fail."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

# Small and quick to learn: the checks ask for an accuracy of 0.83 and an R^2 of 0.5 on a few hundred rows.
QUICK: dict[str, Any] = {"hidden_layer_sizes": (20,), "max_iter": 40, "learning_rate_init": 0.02, "n_threads": 1}
ENGINES = ["native", "reference"] if native_available() else ["reference"]
ESTIMATORS = [
    *(
        kind(norm=norm, engine=ENGINES[0], **QUICK)
        for kind in (MLPClassifier, MLPRegressor)
        for norm in ("batch", None)
    ),
    *(kind(engine=engine, **QUICK) for kind in (MLPClassifier, MLPRegressor) for engine in ENGINES[1:]),
    MLPClassifier(norm=None, solver="lbfgs", engine=ENGINES[0], **QUICK),
    MLPRegressor(norm="batch", solver="lbfgs", engine=ENGINES[0], **QUICK),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix:UserWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)
