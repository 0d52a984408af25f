import pickle

import pytest

from fxprune import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_an_fxprune_error(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.FxpruneError)
    assert str(kind("what, where, what to do")) == "what, where, what to do"


@pytest.mark.parametrize("name", ["SampleError", "RatioError", "BudgetError", "CriterionError", "ExcludeError"])
def test_wrong_arguments_are_value_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), ValueError)


def test_missing_dependency_is_an_import_error() -> None:
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_budget_error_has_the_largest_reachable_ratio() -> None:
    error = errors.BudgetError("out of reach", reachable=0.4, pinned=["fc.weight[0]"])
    assert error.reachable == 0.4
    assert error.pinned == ["fc.weight[0]"]
    assert errors.BudgetError("unknown").reachable is None


def test_budget_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(errors.BudgetError("out of reach", reachable=0.4, pinned=["a"])))
    assert (str(error), error.reachable, error.pinned) == ("out of reach", 0.4, ["a"])
