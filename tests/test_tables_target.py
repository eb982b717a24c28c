"""Target: which task a column means, there and back again, and every target there is nothing to learn from."""

import json
import math
from datetime import date

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from wholebatch.tables import TableError, Target, drop_missing, weights


def frame_of(*columns: object) -> pl.DataFrame:
    return pl.DataFrame({f"y{k}" if k else "y": column for k, column in enumerate(columns)})


def names_of(frame: pl.DataFrame) -> list[str]:
    return list(frame.columns)


TASKS: dict[str, tuple[pl.DataFrame, str, list[object], int]] = {
    "text": (frame_of(["b", "a", " b"]), "classification", ["a", "b"], 2),
    "categories": (frame_of(pl.Series(["b", "a"], dtype=pl.Categorical)), "classification", ["a", "b"], 2),
    "true and false": (frame_of([True, False]), "classification", [False, True], 2),
    "two whole numbers": (frame_of([7, -1]), "classification", [-1, 7], 2),
    "few whole numbers": (frame_of([3, 1, 2] * 2), "classification", [1, 2, 3], 3),
    "20 whole numbers": (frame_of(list(range(20)) * 2), "classification", list(range(20)), 20),
    "21 whole numbers": (frame_of(list(range(21)) * 9), "regression", [], 1),
    "whole numbers that hardly repeat": (frame_of([1, 2, 3, 3, 1]), "regression", [], 1),
    "whole numbers as floats": (frame_of([2.0, 1.0, 1.0]), "classification", [1.0, 2.0], 2),
    "fractions": (frame_of([0.5, 1.0]), "regression", [], 1),
    "labels": (frame_of([0, 1], [True, False], [1.0, 1.0]), "multilabel", [], 3),
    "several numbers": (frame_of([0, 1], [0.0, 2.0]), "regression", [], 2),
}


@pytest.mark.parametrize(("frame", "task", "classes", "outputs"), TASKS.values(), ids=TASKS.keys())
def test_the_task_is_found_out(frame: pl.DataFrame, task: str, classes: list[object], outputs: int) -> None:
    target = Target.infer(frame, names_of(frame))
    assert (target.task, target.classes, target.out_features) == (task, classes, outputs)
    assert [type(value) for value in target.classes] == [type(value) for value in classes]
    assert target.columns == names_of(frame)


def test_the_task_can_be_said() -> None:
    frame = pl.DataFrame({"n": [1, 2, 1], "b": [0, 1, 1], "t": ["1", "2.5", "3"], "f": [0.5, 1.5, 0.5]})
    assert Target.infer(frame, ["n"], "regression").task == "regression"
    assert Target.infer(frame, ["b"], "multilabel").out_features == 1
    assert Target.infer(frame, ["f"], "classification").classes == [0.5, 1.5]
    found = Target.infer(frame, ["t"], "regression").encode(frame)  # numbers, though in a column of text
    np.testing.assert_array_equal(found, Target.infer(pl.DataFrame({"t": [1.0, 2.5, 3.0]}), ["t"]).encode(frame))


def test_classes_there_and_back() -> None:
    for values in (["b", "a", "c", "b"], [True, False, False, True], [3, -2, 3, 0], [1.5, 0.25, 1.5, -1.0]):
        frame = pl.DataFrame({"y": values, "x": [1] * 4})
        target = Target.infer(frame, ["y"], "classification")
        encoded = target.encode(frame)
        assert encoded.dtype == np.int64
        assert [target.classes[k] for k in encoded] == values
        outputs = np.where(np.arange(target.out_features) == encoded[:, None], 2.0, -1.0).astype(np.float32)
        decoded = target.decode(outputs)
        assert_frame_equal(decoded.select("y"), frame.select("y"))
        high, low = math.exp(2), math.exp(-1)
        chance = decoded.drop("y").to_numpy()
        expected = np.where(outputs > 0, high, low) / (high + low * (target.out_features - 1))
        np.testing.assert_allclose(chance, expected, rtol=1e-14)


def test_names_of_probabilities() -> None:
    def columns(values: list[object], name: str = "y") -> list[str]:
        target = Target.infer(pl.DataFrame({name: values}), [name], "classification")
        return target.decode(np.zeros((1, target.out_features))).columns

    assert columns(["<b>", "a b"]) == ["y", "probability_<b>", "probability_a b"]
    assert columns([True, False]) == ["y", "probability_false", "probability_true"]
    assert columns([10, 2]) == ["y", "probability_2", "probability_10"]
    assert columns(["a", "b"], "probability_a") == ["probability_a", "probability_a_", "probability_b"]


def test_probabilities_of_extreme_logits_are_finite() -> None:
    target = Target.infer(frame_of(["a", "b"]), ["y"])
    decoded = target.decode(np.array([[3e38, -3e38], [-1e5, 1e5]], dtype=np.float32))
    assert decoded.to_dict(as_series=False) == {
        "y": ["a", "b"],
        "probability_a": [1.0, 0.0],
        "probability_b": [0.0, 1.0],
    }
    labels = Target.infer(frame_of([0, 1], [1, 0]), ["y", "y1"])
    assert labels.decode(np.array([[3e38, -3e38]])).row(0) == (1, 0, 1.0, 0.0)


def test_labels_there_and_back() -> None:
    frame = frame_of([0, 1, 1], [True, False, False])
    target = Target.infer(frame, ["y", "y1"])
    encoded = target.encode(frame)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[0, 1], [1, 0], [1, 0]]
    decoded = target.decode(np.array([[-1.0, 2.0], [0.5, -3.0], [0.0, 0.0]]))
    assert decoded.columns == ["y", "y1", "probability_y", "probability_y1"]
    assert decoded.select("y", "y1").rows() == [(0, 1), (1, 0), (0, 0)]
    sigmoid = 1 / (1 + np.exp(-np.array([-1.0, 0.5, 0.0])))
    np.testing.assert_allclose(decoded["probability_y"], sigmoid, rtol=1e-15)


@pytest.mark.parametrize("unit", [1.0, 1e300, 1e-300, 1e-312, 2.0**1023])
@pytest.mark.parametrize("offset", [0.0, 1.0, 900.0])
def test_values_of_any_magnitude_there_and_back(unit: float, offset: float) -> None:
    if offset * unit > 1e300:
        offset, unit = 0.5, unit / 4  # what fits
    shape = np.array([-1.0, 0.25, 0.5, 1.75]) + offset
    frame = frame_of(shape * unit, [1, 2, 3, 5])
    target = Target.infer(frame, ["y", "y1"])
    encoded = target.encode(frame)
    assert encoded.dtype == np.float32
    expected = (shape - shape.mean()) / shape.std()
    # rounded to float32; numbers around 1e-312 are multiples of 5e-324, so what went in is right to 5e-12
    np.testing.assert_allclose(encoded[:, 0], expected, rtol=2.0**-23, atol=1e-11)
    back = target.decode(encoded)
    # float32 holds a standardised value to 2^-24 of at most 2, so a decoded one is right to 2^-23 standard deviations
    np.testing.assert_allclose(back["y"].to_numpy() / unit, shape, rtol=0, atol=2.0**-23 * shape.std() + 1e-11)
    assert back.columns == ["y", "y1"]


def test_outputs_beyond_float64_are_cut_to_its_largest_number() -> None:
    target = Target.infer(frame_of([0.0, 1.7e308, 0.1]), ["y"])
    assert target.decode(np.array([[1e6], [-1e6]]))["y"].abs().to_list() == [np.finfo(np.float64).max] * 2


def test_no_rows_to_decode() -> None:
    classes = Target.infer(frame_of([5, 3]), ["y"]).decode(np.empty((0, 2)))
    assert classes.schema == {"y": pl.Int64, "probability_3": pl.Float64, "probability_5": pl.Float64}
    assert Target.infer(frame_of([0.5, 3]), ["y"]).decode(np.empty((0, 1))).schema == {"y": pl.Float64}


def test_outputs_that_are_none_of_this_target() -> None:
    target = Target.infer(frame_of(["a", "b"]), ["y"])
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 1\); this target takes \(N, 2\)"):
        target.decode(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"outputs have shape \(2,\)"):
        target.decode(np.zeros(2))
    with pytest.raises(ValueError, match=r"not finite \(nan or inf\) in row 2"):
        target.decode(np.array([[0.0, 1.0], [np.nan, 0.0]]))


def test_single_rows_are_noted() -> None:
    target = Target.infer(frame_of(["a", "a", "b", "c"]), ["y"])
    assert target.notes == ["2 of 3 classes have a single row: 'b', 'c'"]
    assert Target.infer(frame_of([0, 1], [1, 1]), ["y", "y1"]).notes == [
        "target column 'y1': the same value in every row"
    ]


REFUSED: dict[str, tuple[pl.DataFrame, list[str], str, str]] = {
    "no column named": (frame_of([1, 2]), [], "auto", r"no target column was named"),
    "no such column": (pl.DataFrame({"Price": [1]}), ["price"], "auto", r"no column 'price', .*did you mean 'Price'\?"),
    "nothing close": (frame_of([1]), ["qqq"], "auto", r"no column 'qqq', which was to be the target; it has 'y'"),
    "twice": (frame_of([1, 2]), ["y", "y"], "auto", r"named twice among 'y', 'y'"),
    "one row": (frame_of([1]), ["y"], "auto", r"the table has 1 row; there must be at least 2"),
    "no rows": (frame_of([]), ["y"], "auto", r"the table has 0 rows; there must be at least 2"),
    "missing": (
        frame_of([1, None, None]),
        ["y"],
        "auto",
        r"no value in 2 of 3 rows \(the first is row 2\).*--drop-miss",
    ),
    "missing nan": (frame_of([math.nan, 1.0]), ["y"], "auto", r"no value in 1 of 2 rows \(the first is row 1\)"),
    "missing word": (frame_of(["a", "NA"]), ["y"], "auto", r"no value in 1 of 2 rows \(the first is row 2\)"),
    "all missing": (frame_of([None, None]), ["y"], "auto", r"no value in 2 of 2 rows"),
    "one class": (frame_of(["a", "a"]), ["y"], "auto", r"one class only \('a' in all 2 rows\)"),
    "one number": (frame_of([3, 3]), ["y"], "auto", r"one class only \(3 in all 2 rows\)"),
    "one value": (frame_of([0.5, 0.5]), ["y"], "auto", r"target column 'y': the same value in all 2 rows"),
    "one value of several": (
        frame_of([1, 2], [3, 3]),
        ["y", "y1"],
        "auto",
        r"target column 'y1': the same value in all",
    ),
    "labels that never change": (frame_of([0, 0], [1, 1]), ["y", "y1"], "auto", r"target columns 'y', 'y1': the same"),
    "infinite": (frame_of([0.5, math.inf]), ["y"], "auto", r"'y' has an infinite value \(inf\) in row 2"),
    "a class per row": (
        frame_of([f"n{k}" for k in range(30)]),
        ["y"],
        "auto",
        r"class of its own for each of the 30 rows",
    ),
    "a stray word": (frame_of([*map(str, range(20)), "oops"]), ["y"], "auto", r"'oops' in row 21 while nearly all"),
    "dates": (
        frame_of([date(2020, 1, 1), date(2021, 1, 1)]),
        ["y"],
        "auto",
        r"holds dates; a target must be classes or",
    ),
    "text among several": (
        frame_of([0, 1], ["a", "b"]),
        ["y", "y1"],
        "auto",
        r"'y1' holds text; several target columns",
    ),
    "regression on text": (
        frame_of(["1.5", "cat", "dog"]),
        ["y"],
        "regression",
        r"'cat' in row 2 \(2 such values\), which is not a number; regression needs .*--task classification",
    ),
    "regression on dates": (
        frame_of([date(2020, 1, 1)] * 2),
        ["y"],
        "regression",
        r"holds dates; regression needs numbers",
    ),
    "labels of three values": (frame_of([0, 1, 2]), ["y"], "multilabel", r"'y' has 2 in row 3; a label is 0 or 1"),
    "classes of several": (frame_of([0, 1], [0, 1]), ["y", "y1"], "classification", r"one target column, 2 were named"),
    "classes of dates": (frame_of([date(2020, 1, 1)] * 2), ["y"], "classification", r"holds dates, which cannot be"),
    "classes beyond 64 bits": (
        pl.DataFrame({"y": [2**64, 1]}, schema={"y": pl.Int128}),
        ["y"],
        "classification",
        r"whole numbers beyond 64 bits",
    ),
    "no such task": (frame_of([1, 2]), ["y"], "guess", r"task is 'guess'; choose auto, classification"),
}


@pytest.mark.parametrize(("frame", "columns", "task", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_targets_there_is_nothing_to_learn_from(
    frame: pl.DataFrame, columns: list[str], task: str, message: str
) -> None:
    with pytest.raises(TableError, match=message) as caught:
        Target.infer(frame, columns, task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("trained", "new", "message"),
    [
        (["a", "b"], ["a", "c"], r"has 'c' in row 2, which is none of the 2 classes"),
        (["a", "b"], ["a", None], r"no value in 1 of 2 rows"),
        ([1, 2], [2.0, 1.5], r"has 1\.5 in row 2, which is none of the 2 classes"),
        ([1, 2], ["1", "x"], r"has 'x' in row 2, which is none of the 2 classes"),
        ([True, False], [1, 2], r"has 2 in row 2, which is none of the 2 classes"),
        ([0.5, 1.5], ["0.5", "x"], r"has 'x' in row 2, which is not a number; regression needs numbers"),
        ([0.5, 1.5], [0.5, math.inf], r"infinite value \(inf\) in row 2"),
    ],
)
def test_new_targets_that_do_not_fit(trained: list[object], new: list[object], message: str) -> None:
    target = Target.infer(frame_of(trained), ["y"])
    with pytest.raises(TableError, match=message):
        target.encode(frame_of(new))
    with pytest.raises(TableError, match="the table has no column 'y', which the model was trained to predict"):
        target.encode(pl.DataFrame({"x": [1, 2]}))


def test_classes_in_another_type_of_column() -> None:
    numbers = Target.infer(frame_of([1, 0, 1]), ["y"])
    for same in ([1.0, 0.0], ["1", " 0"], [True, False], pl.Series([1, 0], dtype=pl.UInt8)):
        assert numbers.encode(frame_of(same)).tolist() == [1, 0]
    truth = Target.infer(frame_of([True, False]), ["y"])
    assert truth.encode(frame_of([0, 1])).tolist() == [0, 1]
    text = Target.infer(frame_of(["1", "x"]), ["y"], "classification")
    assert text.encode(frame_of([1, 1])).tolist() == [0, 0]
    assert (text.text_columns, numbers.text_columns) == (["y"], [])


@pytest.mark.parametrize(("frame", "task", "classes", "outputs"), TASKS.values(), ids=TASKS.keys())
def test_saved_and_loaded_it_is_the_same(frame: pl.DataFrame, task: str, classes: list[object], outputs: int) -> None:
    target = Target.infer(frame, names_of(frame))
    loaded = Target.from_dict(json.loads(json.dumps(target.to_dict(), allow_nan=False)))
    assert loaded.to_dict() == target.to_dict()
    assert (loaded.task, loaded.classes, loaded.out_features, loaded.notes) == (task, classes, outputs, target.notes)
    np.testing.assert_array_equal(loaded.encode(frame), target.encode(frame))
    logits = np.random.default_rng(0).standard_normal((5, outputs)).astype(np.float32)
    assert_frame_equal(loaded.decode(logits), target.decode(logits), check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "guess"}, r"the target's description is corrupt or not of this version: task: Input should be"),
        ({"classes": ["a"]}, r"at least two classes"),
        ({"classes": ["a", "a"]}, r"all different"),
        ({"classes": ["a", 1]}, r"a class is not of type text"),
        ({"classes": None}, r"classes: Input should be a valid list"),
        ({"columns": []}, r"there is no target column"),
        ({"columns": ["y", "z"]}, r"one column"),
        ({"task": "regression", "classes": []}, r"scales and columns do not agree"),
        ({"task": "regression"}, r"regression has no classes"),
        ({"scales": [{"exponent": 1, "mean": 0.0, "std": 1.0}]}, r"scales and columns do not agree"),
        ({"extra": 1}, r"extra: Extra inputs are not permitted"),
    ],
)
def test_corrupt_content_is_refused(change: dict[str, object], message: str) -> None:
    content = Target.infer(frame_of(["a", "b"]), ["y"]).to_dict()
    with pytest.raises(ValueError, match=message):
        Target.from_dict(content | change)


@pytest.mark.parametrize(
    "scale", [{"mean": math.nan}, {"std": 0.0}, {"std": -1.0}, {"std": math.inf}, {"exponent": 5000}]
)
def test_corrupt_scales_are_refused(scale: dict[str, float]) -> None:
    content = Target.infer(frame_of([0.5, 1.5]), ["y"]).to_dict()
    content["scales"][0] |= scale
    with pytest.raises(ValueError, match=rf"scales\.0\.{next(iter(scale))}: Input should be"):
        Target.from_dict(content)


@pytest.mark.parametrize("content", [None, [], "x", 3, {}])
def test_foreign_content_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="the target's description is corrupt or not of this version"):
        Target.from_dict(content)


def test_rows_without_a_target_can_be_dropped() -> None:
    frame = pl.DataFrame({"y": [1.0, math.nan, None, 4.0], "z": ["a", "b", "c", " NA"], "x": [1, 2, 3, None]})
    assert drop_missing(frame, ["y"])["x"].to_list() == [1, None]
    assert drop_missing(frame, ["y", "z"])["x"].to_list() == [1]
    with pytest.raises(TableError, match="no column 'w'"):
        drop_missing(frame, ["w"])


def test_weights() -> None:
    frame = pl.DataFrame({"w": [1, 0, 3], "t": ["0.5", " 2", "1"]})
    assert weights(frame, "w").tolist() == [1.0, 0.0, 3.0]
    assert weights(frame, "w").dtype == np.float32
    assert weights(frame, "t").tolist() == [0.5, 2.0, 1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None, None], r"weight column 'w' has no value in row 2 \(2 rows\)"),
        ([1.0, math.nan], r"has no value in row 2"),
        ([1.0, -0.5], r"has -0\.5 in row 2; a weight is a number of 0 or more"),
        ([0, 0, 0], r"is zero in all 3 rows"),
        ([1e-60, 0], r"is zero in all 2 rows"),
        ([1.0, 1e39], r"has 1e\+39 in row 2; float32 ends at 3\.4e38"),
        ([1.0, math.inf], r"infinite value \(inf\) in row 2"),
        (["1", "heavy"], r"has 'heavy' in row 2, which is not a number"),
        ([date(2020, 1, 1)], r"holds dates where numbers are needed"),
    ],
)
def test_weights_that_are_none(values: list[object], message: str) -> None:
    with pytest.raises(TableError, match=message):
        weights(pl.DataFrame({"w": values}), "w")


def test_no_such_weight_column() -> None:
    with pytest.raises(
        TableError, match=r"no column 'weigth', which was to hold the sample weights; did you mean 'weight'"
    ):
        weights(pl.DataFrame({"weight": [1]}), "weigth")
