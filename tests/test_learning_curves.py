"""curves.png names over-fitting where a run's figures show it, and only there."""

import pytest

from resnet_lab.callbacks.learning_curves import draw, overfitting


def table(val_loss, train_acc, val_acc=None):
    """Rows as of metrics.csv; validation accuracy is constant where it is not given."""
    val_acc = val_acc or [0.5] * len(val_loss)
    return [
        {
            "epoch": str(epoch),
            "train/loss": str(1 - train),
            "train/acc": str(train),
            "val/loss": "" if loss is None else str(loss),
            "val/acc": "" if loss is None else str(val),
        }
        for epoch, (loss, train, val) in enumerate(
            zip(val_loss, train_acc, val_acc, strict=True), start=1
        )
    ]


OVER = table([1.0, 0.8, 0.9, 1.0, 1.1], [0.4, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.62, 0.61, 0.6])


def test_over_fitting_by_hand():
    found = overfitting(OVER)
    assert found is not None
    assert found.epoch == 2
    assert found.rise == pytest.approx(0.25)  # a mean of 1.0 over 0.8
    assert (found.train, found.val) == (0.9, 0.6)
    texts = [text.get_text() for axes in draw(OVER).axes for text in axes.texts]
    assert texts == ["gap\n30.0 points"]
    assert (
        "Over-fitting: validation loss was lowest at epoch 2, and 25% higher on average since"
        in draw(OVER).get_suptitle()
    )


@pytest.mark.parametrize(
    "rows",
    [
        table([1.0, 0.8, 0.7, 0.6, 0.5], [0.4, 0.6, 0.7, 0.8, 0.9]),  # still falling
        table([1.0, 0.8, 0.81, 0.82, 0.83], [0.4, 0.6, 0.7, 0.8, 0.9]),  # 2.5% is noise
        table([1.0, 0.8, 0.9, 1.0], [0.4, 0.6, 0.7, 0.8]),  # two epochs since
        table([1.0, 0.8, 0.9, 1.0, 1.1], [0.4, 0.6, 0.6, 0.59, 0.58]),  # training got worse, too
        table([1.0, 0.8, 0.9, 1.0, 1.1], [0.1, 0.2, 0.3, 0.35, 0.4]),  # under-fitting: no gap
        table([2.3, 2.2, 2.2, 2.2, 2.2], [0.1, 0.1, 0.12, 0.1, 0.11], [0.1] * 5),
        table([1.0], [0.9]),
        table([None, None, None, None], [0.4, 0.6, 0.8, 0.9]),  # no validation
        table([0.0, 0.1, 0.2, 0.3], [0.7, 0.8, 0.9, 0.95]),
        [],
    ],
)
def test_other_curves_are_given_no_name(rows):
    assert overfitting(rows) is None
    if rows:
        assert "fitting" not in draw(rows).get_suptitle()
        assert not any(axes.texts for axes in draw(rows).axes)


def test_epochs_without_figures_do_not_count():
    rows = table(
        [1.0, 0.8, float("nan"), 0.9, None, 1.0, 1.1],
        [0.4, 0.6, 0.7, 0.7, 0.75, 0.8, 0.9],
    )
    found = overfitting(rows)
    assert found is not None
    assert (found.epoch, round(found.rise, 6)) == (2, 0.25)
    draw(rows)
