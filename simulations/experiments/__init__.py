"""What is done with runs: compare, watch, predict."""
