"""Node: the Flower app, its answers, the clients it hosts and what they keep."""
