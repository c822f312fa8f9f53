"""What is said of runs of which nothing will come."""

from strategies.hopeless import hopeless


def test_a_loss_beyond_all_reason_in_the_first_round() -> None:
    assert "a loss of 2,782: this run" in hopeless(1, {"loss": 2782.0}, shares=True)
    assert hopeless(1, {"loss": 99.0}, shares=True) == ""
    assert hopeless(2, {"loss": 2782.0}, shares=True) == ""
    assert hopeless(1, {}, shares=True) == ""


def test_nothing_right_anywhere() -> None:
    told = hopeless(5, {"personal": 0.0, "global": 0.0}, shares=True)
    assert told.startswith("round 5: nothing is right at any client")
    assert hopeless(5, {"personal": 0.1, "global": 0.0}, shares=True) == ""
    assert hopeless(5, {"personal": 0.0}, shares=False) == ""
